//! Shows a run: burn-train's full screen on a terminal, otherwise lines and a progress bar.

use crate::progress::{Progress, note};
use crate::{interrupt, terminal};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use sam_lst::TrainingEvent;
use sam_lst::training::{TrainingPlan, TrainingScreen, TrainingStep, TrainingValidation};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Duration;

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The full screen from the first step on; lines and a progress bar until then.
    Screen,
    /// Lines and a progress bar.
    Lines,
    /// As `Lines`, for a run that only computes embeddings.
    Embeddings,
}

impl Mode {
    /// The full screen where standard output is a terminal, unless lines are wanted.
    pub fn new(plain: bool) -> Self {
        if plain || !std::io::stdout().is_terminal() { Self::Lines } else { Self::Screen }
    }
}

/// Shows the events of a run until dropped.
pub struct Display {
    mode: Mode,
    progress: Option<Progress>,
    screen: Option<TrainingScreen>,
    plan: Option<TrainingPlan>,
    loss: String,
    /// Messages for the time after the full screen.
    deferred: Vec<String>,
}

impl Display {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            progress: Some(Progress::new()),
            screen: None,
            plan: None,
            loss: String::new(),
            deferred: Vec::new(),
        }
    }

    /// Shows an event. Breaks once the user has requested a stop.
    pub fn show(&mut self, event: &TrainingEvent<'_>) -> ControlFlow<()> {
        if let (Mode::Screen, TrainingEvent::Step(_) | TrainingEvent::Validating { .. }) =
            (self.mode, event)
        {
            self.open_screen();
        }
        let flow = match &mut self.screen {
            Some(screen) => {
                terminal::enable_ctrl_c();
                if let TrainingEvent::CacheFull(error) = event {
                    self.deferred.push(error.to_string());
                }
                screen.show(event)
            }
            None => {
                self.show_lines(event);
                ControlFlow::Continue(())
            }
        };
        if interrupt::stop_requested() { ControlFlow::Break(()) } else { flow }
    }

    /// Opens the full screen, which shows neither progress nor time left of anything but steps.
    fn open_screen(&mut self) {
        if let (None, Some(plan)) = (&self.screen, &self.plan) {
            self.progress = None;
            let mut screen = TrainingScreen::full();
            terminal::set_full_screen(true);
            let _: ControlFlow<()> = screen.show(&TrainingEvent::Planned(plan));
            self.screen = Some(screen);
        }
    }

    fn show_lines(&mut self, event: &TrainingEvent<'_>) {
        match event {
            TrainingEvent::ReadingCases { done, total } => {
                self.count("reading", *done, *total, "cases");
            }
            TrainingEvent::CheckingCache { done, total } => {
                self.count("planning", *done, *total, "slices");
            }
            TrainingEvent::Planned(plan) => self.begin(plan),
            TrainingEvent::Precomputing { done, total } => {
                self.count("embedding", *done, *total, "images");
                if done == total {
                    self.begin_steps();
                }
            }
            TrainingEvent::Step(step) => self.step(step),
            TrainingEvent::Validating { case, done, total } => {
                self.count("validating", *done, *total, &format!("slices of case {case}"));
            }
            TrainingEvent::Validated(validation) => self.validated(validation),
            TrainingEvent::CacheFull(error) => note(&error.to_string()),
            _ => {}
        }
    }

    fn count(&mut self, work: &'static str, done: usize, total: usize, unit: &str) {
        if let Some(progress) = &mut self.progress {
            progress.count(work, done, total, unit);
        }
    }

    fn begin(&mut self, plan: &TrainingPlan) {
        // From here on there is something to save.
        interrupt::set_finishes_step(true);
        self.plan = Some(plan.clone());
        note(&describe(plan, self.mode));
        if plan.cached_embeddings == plan.cacheable_embeddings {
            self.begin_steps();
        }
    }

    /// Shows the progress of the steps before the first of them.
    fn begin_steps(&mut self) {
        let completed = self.plan.as_ref().map_or(0, |plan| plan.completed_steps);
        self.steps(completed);
    }

    fn steps(&mut self, completed: u64) {
        let (Some(progress), Some(plan)) = (&mut self.progress, &self.plan) else { return };
        if self.mode != Mode::Embeddings {
            let fraction = completed as f64 / plan.total_steps.max(1) as f64;
            let separator = if self.loss.is_empty() { "" } else { ", " };
            let text = format!("step {completed}/{}{separator}{}", plan.total_steps, self.loss);
            progress.update("training", fraction, &text);
        }
    }

    fn step(&mut self, step: &TrainingStep) {
        self.loss = format!("loss {:.4}", step.loss);
        if let Some(gate) = step.gate {
            self.loss += &format!(", gate {gate:.3}");
        }
        let completed = step.step + 1;
        self.steps(completed);
        if let Some(plan) = &self.plan
            && plan.validation_cases == 0
            && completed.is_multiple_of(plan.steps_per_epoch)
        {
            note(&format!(
                "epoch {:>4}/{}: {}",
                completed / plan.steps_per_epoch,
                plan.epochs(),
                self.loss
            ));
        }
    }

    fn validated(&self, validation: &TrainingValidation) {
        let best = if validation.best { " (best so far)" } else { "" };
        note(&format!(
            "epoch {:>4}/{}: {}, validation DSC {:.2} %{best}",
            validation.epochs,
            self.plan.as_ref().map_or(0, TrainingPlan::epochs),
            self.loss,
            100.0 * validation.mean_dsc
        ));
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        interrupt::set_finishes_step(false);
        self.progress = None;
        self.screen = None; // restores the terminal
        terminal::set_full_screen(false);
        self.deferred.iter().for_each(|message| note(message));
    }
}

fn describe(plan: &TrainingPlan, mode: Mode) -> String {
    let count = |number: usize| HumanCount(number as u64);
    let mut lines = vec![format!(
        "data        {} with {}, {}",
        plural(plan.training_cases, "training case"),
        plural(plan.slices, "slice"),
        plural(plan.validation_cases, "validation case")
    )];
    if mode != Mode::Embeddings {
        let organs = plan.organs.iter().zip(&plan.organ_cases);
        let organs: Vec<String> = organs.map(|(organ, cases)| format!("{organ} {cases}")).collect();
        lines.push(format!("organs      in training cases: {}", organs.join(", ")));
        lines.push(format!(
            "training    {} in {}, {}",
            plural(plan.total_steps as usize, "step"),
            plural(plan.epochs() as usize, "epoch"),
            plural(plan.trained_parameters, "trained parameter")
        ));
        if plan.completed_steps > 0 {
            lines.push(format!("            resuming after step {}", plan.completed_steps));
        }
    }
    if plan.cacheable_embeddings > 0 {
        lines.push(format!(
            "embeddings  {} to cache, which take {}; {} of them are present",
            count(plan.cacheable_embeddings),
            HumanBytes(plan.cache_bytes),
            count(plan.cached_embeddings)
        ));
    }
    if let Some(time) = plan.time_per_embedding {
        let missing = plan.missing_embeddings();
        let seconds = time.as_secs_f64() * missing as f64 / plan.devices as f64;
        lines.push(format!(
            "foundation  {} to embed, about {}",
            plural(missing, "image"),
            HumanDuration(Duration::from_secs_f64(seconds))
        ));
    }
    lines.join("\n")
}

fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {noun}{s}", HumanCount(count as u64))
}
