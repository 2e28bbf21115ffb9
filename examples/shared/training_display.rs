//! What is seen of a run on its way: on a terminal, burn-train's full screen; elsewhere, or if asked for, lines and a
//! progress bar.

use anyhow::Result;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use sam_lst::{TrainingEvent, TrainingPlan, TrainingScreen, TrainingStep, TrainingValidation};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Duration;

pub struct Display {
    bar: ProgressBar,
    steps: ProgressStyle,
    embeddings: ProgressStyle,
    others: ProgressStyle,
    /// Whether embeddings are being computed.
    embedding: bool,
    plain: bool,
    screen: Option<TrainingScreen>,
    /// What the screen begins with, at the first step.
    plan: Option<TrainingPlan>,
    epochs: u64,
    epoch_steps: u64,
    validates: bool,
    loss: String,
}

impl Display {
    pub fn new(plain: bool) -> Result<Self> {
        Ok(Self {
            bar: ProgressBar::no_length(),
            steps: ProgressStyle::with_template(
                "training   {bar:30} {pos}/{len} steps, {eta} left  {msg}",
            )?,
            embeddings: ProgressStyle::with_template(
                "embedding  {bar:30} {pos}/{len} images, {eta} left",
            )?,
            embedding: false,
            others: ProgressStyle::with_template("{prefix:10} {bar:30} {pos}/{len} {msg}")?,
            plain: plain || !std::io::stdout().is_terminal(),
            screen: None,
            plan: None,
            epochs: 0,
            epoch_steps: 1,
            validates: false,
            loss: String::new(),
        })
    }

    /// Gives the terminal back, and says how many steps an epoch has.
    pub fn close(self) -> u64 {
        self.bar.finish_and_clear();
        self.epoch_steps
    }

    pub fn show(&mut self, event: TrainingEvent<'_>) -> ControlFlow<()> {
        if let TrainingEvent::Stepped(_) | TrainingEvent::Validating(..) = event {
            self.take_the_terminal();
        }
        if let Some(screen) = &mut self.screen {
            return screen.show(&event);
        }
        match event {
            TrainingEvent::Reading(done, all) => self.count("reading", "cases", done, all),
            TrainingEvent::Planning(done, all) => self.count("planning", "slices", done, all),
            TrainingEvent::Planned(plan) => self.begin(plan),
            TrainingEvent::Embedding(done, all) => self.embedding(done, all),
            TrainingEvent::Stepped(step) => self.step(step),
            TrainingEvent::Validating(case, done, all) => {
                self.count("validating", &format!("slices of {case}"), done, all);
            }
            TrainingEvent::Validated(validation) => self.validated(validation),
            TrainingEvent::CacheFull(error) => self.say(&error.to_string()),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn begin(&mut self, plan: &TrainingPlan) {
        self.epoch_steps = plan.epoch_steps;
        self.epochs = plan.steps / plan.epoch_steps;
        self.validates = plan.validation_cases > 0;
        self.say(&describe(plan));
        if !self.plain && plan.steps_done < plan.steps {
            self.plan = Some(plan.clone());
        }
        self.bar.set_length(plan.steps);
        self.bar.set_style(self.steps.clone());
        // So that the time left is not reckoned from steps of an earlier process.
        self.bar.set_position(plan.steps_done);
        self.bar.reset_eta();
    }

    /// The full screen, which has neither progress nor time left for anything but steps, so it waits for the first.
    fn take_the_terminal(&mut self) {
        if let Some(plan) = self.plan.take() {
            self.bar.finish_and_clear();
            let mut screen = TrainingScreen::full();
            let _ = screen.show(&TrainingEvent::Planned(&plan));
            self.screen = Some(screen);
        }
    }

    fn embedding(&mut self, done: usize, all: usize) {
        if self.embedding {
            self.bar.set_position(done as u64);
            return;
        }
        self.embedding = true;
        self.bar.set_style(self.embeddings.clone());
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
        self.bar.reset_eta();
    }

    fn step(&mut self, step: &TrainingStep) {
        self.loss = format!("loss {:.4}", step.loss);
        if let Some(gate) = step.gate {
            self.loss += &format!(", gate {gate:.3}");
        }
        self.bar.set_style(self.steps.clone());
        self.bar.set_length(self.epochs * self.epoch_steps);
        if std::mem::take(&mut self.embedding) {
            // The time left is that of steps.
            self.bar.set_position(step.step);
            self.bar.reset_eta();
        }
        self.bar.set_position(step.step + 1);
        self.bar.set_message(self.loss.clone());
        let done = step.step + 1;
        if done.is_multiple_of(self.epoch_steps) && !self.validates {
            self.say(&format!(
                "epoch {:4}: {}",
                done / self.epoch_steps,
                self.loss
            ));
        }
    }

    fn validated(&self, validation: &TrainingValidation) {
        let mark = match validation.best {
            true => ", the best so far",
            false => "",
        };
        let (epoch, dsc) = (validation.epochs, 100.0 * validation.mean_dsc);
        self.say(&format!(
            "epoch {epoch:4}: {}, validation DSC {dsc:.2} %{mark}",
            self.loss
        ));
    }

    fn count(&self, what: &'static str, unit: &str, done: usize, all: usize) {
        self.bar.set_style(self.others.clone());
        self.bar.set_prefix(what);
        self.bar.set_message(unit.to_owned());
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
    }

    /// A line that stays.
    #[expect(clippy::print_stdout, reason = "a program's output")]
    fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }
}

fn describe(plan: &TrainingPlan) -> String {
    let mut text = format!(
        "{} cases with {} slices train {} values in {} steps; {} cases validate",
        plan.cases, plan.slices, plan.trained_values, plan.steps, plan.validation_cases
    );
    if plan.steps_done > 0 {
        text += &format!("\ngoing on after step {}", plan.steps_done);
    }
    if plan.kept_embeddings > 0 {
        text += &format!(
            "\nembeddings: {} are kept, which takes {}; {} of them are there",
            plan.kept_embeddings,
            HumanBytes(plan.kept_bytes),
            plan.found_embeddings,
        );
    }
    if let Some(time) = plan.embedding_time {
        let missing = plan.missing_embeddings();
        let seconds = time.as_secs_f64() * missing as f64 / plan.devices as f64;
        text += &format!(
            "\nfoundation: {missing} images to embed, in about {}",
            HumanDuration(Duration::from_secs_f64(seconds))
        );
    }
    text
}
