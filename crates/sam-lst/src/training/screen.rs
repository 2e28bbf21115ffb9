//! Shows a run with burn-train's renderer.

use super::{TrainingEvent, TrainingPlan, TrainingStep, TrainingValidation};
use burn_train::Interrupter;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{MetricState, MetricsRenderer};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Shows a run with burn-train's full-screen terminal interface, or another of its renderers: curves of
/// losses, learning rate, gate and the validation DSC of each organ, progress, time left, and a key to
/// stop.
///
/// ```no_run
/// # fn example(
/// #     model: sam_lst::SamLst,
/// #     dataset: &sam_lst::Dataset,
/// #     training: &sam_lst::Training,
/// # ) -> Result<(), sam_lst::training::TrainingError> {
/// use sam_lst::training::TrainingScreen;
///
/// let mut screen = None;
/// let outcome = training.run(model, dataset, |event| {
///     screen.get_or_insert_with(TrainingScreen::full).show(&event)
/// });
/// drop(screen); // restores the terminal
/// outcome?;
/// # Ok(())
/// # }
/// ```
pub struct TrainingScreen {
    renderer: Box<dyn MetricsRenderer>,
    interrupter: Interrupter,
    plan: Option<TrainingPlan>,
    split: Option<Split>,
}

/// The kind of work in progress.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Split {
    Embedding,
    Training,
    Validation,
}

const LOSS: &str = "Loss";
const CROSS_ENTROPY: &str = "Cross entropy";
const DICE_LOSS: &str = "Dice loss";
const LEARNING_RATE: &str = "Learning rate";
const GATE: &str = "Gate";
const EMBEDDINGS: &str = "Embeddings computed";
const MEAN_DSC: &str = "Mean DSC";

impl TrainingScreen {
    /// Takes over the terminal until dropped.
    ///
    /// # Panics
    ///
    /// If standard output is not a terminal.
    pub fn full() -> Self {
        use std::io::IsTerminal;
        assert!(std::io::stdout().is_terminal(), "standard output is a terminal");
        let interrupter = Interrupter::new();
        let renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), None);
        Self::with_renderer(Box::new(renderer), interrupter)
    }

    /// Shows runs on a renderer. The run stops when `interrupter` is signalled.
    pub fn with_renderer(renderer: Box<dyn MetricsRenderer>, interrupter: Interrupter) -> Self {
        Self { renderer, interrupter, plan: None, split: None }
    }

    /// Shows an event. Breaks once the user has requested a stop.
    pub fn show(&mut self, event: &TrainingEvent<'_>) -> ControlFlow<()> {
        match event {
            TrainingEvent::Planned(plan) => self.begin((*plan).clone()),
            TrainingEvent::Step(step) => self.step(step),
            TrainingEvent::Validating { done, total, .. } => self.validating(*done, *total),
            TrainingEvent::Validated(validation) => self.validated(validation),
            TrainingEvent::CacheFull(_) => {
                self.renderer.log_event_training("cache full".to_owned());
            }
            TrainingEvent::Precomputing { done, total } => self.precomputing(*done, *total),
            TrainingEvent::ReadingCases { .. } | TrainingEvent::CheckingCache { .. } => {}
        }
        if self.interrupter.should_stop() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn begin(&mut self, plan: TrainingPlan) {
        for (name, higher_is_better) in [(LOSS, false), (CROSS_ENTROPY, false), (DICE_LOSS, false)]
        {
            self.register(name, None, higher_is_better);
        }
        if plan.validation_cases > 0 {
            self.register(MEAN_DSC, Some("%"), true);
            for organ in &plan.organs {
                self.register(&organ_name(organ), Some("%"), true);
            }
        }
        self.register(LEARNING_RATE, None, true);
        self.register(GATE, None, true);
        self.renderer.register_metric(MetricDefinition {
            metric_id: id(EMBEDDINGS),
            name: Arc::new(EMBEDDINGS.to_owned()),
            description: None,
            attributes: MetricAttributes::None,
        });
        // burn-train counts epochs from 1.
        let current_epoch = plan.completed_steps / plan.steps_per_epoch + 1;
        self.renderer.start(plan.epochs() as usize, current_epoch as usize, None, None);
        self.plan = Some(plan);
    }

    fn register(&mut self, name: &str, unit: Option<&str>, higher_is_better: bool) {
        let attributes = NumericAttributes { unit: unit.map(str::to_owned), higher_is_better };
        self.renderer.register_metric(MetricDefinition {
            metric_id: id(name),
            name: Arc::new(name.to_owned()),
            description: None,
            attributes: attributes.into(),
        });
    }

    /// Switches the progress bar to another kind of work.
    fn enter(&mut self, split: Split, items: usize) {
        if self.split == Some(split) {
            return;
        }
        if self.split.is_some() {
            self.renderer.end_split();
        }
        let name = match split {
            Split::Embedding | Split::Training => "train",
            Split::Validation => "valid",
        };
        self.renderer.start_split(name, items);
        self.split = Some(split);
    }

    fn step(&mut self, step: &TrainingStep) {
        let steps_per_epoch = self.plan.as_ref().map_or(1, |plan| plan.steps_per_epoch);
        self.enter(Split::Training, steps_per_epoch as usize);
        let numbers = [
            (LOSS, step.loss),
            (CROSS_ENTROPY, step.cross_entropy),
            (DICE_LOSS, step.dice_loss),
            (LEARNING_RATE, step.learning_rate),
        ];
        for (name, value) in numbers {
            self.renderer.update_train(number(name, value, ""));
        }
        if let Some(gate) = step.gate {
            self.renderer.update_train(number(GATE, gate.into(), ""));
        }
        let computed = step.computed_embeddings.to_string();
        self.renderer.update_train(MetricState::Generic(MetricEntry::new(
            id(EMBEDDINGS),
            SerializedEntry::new(computed.clone(), computed),
        )));
        let done = step.step + 1 - step.epoch * steps_per_epoch;
        self.renderer.update_split(done as usize);
        if done == steps_per_epoch {
            self.renderer.update_epoch(step.epoch as usize + 1);
        }
    }

    fn precomputing(&mut self, done: usize, total: usize) {
        self.enter(Split::Embedding, total);
        self.renderer.update_split(done);
    }

    fn validating(&mut self, done: usize, slices: usize) {
        if done == 0 && self.split == Some(Split::Validation) {
            // The progress bar starts again with each case.
            self.renderer.end_split();
            self.split = None;
        }
        self.enter(Split::Validation, slices);
        self.renderer.update_split(done);
    }

    fn validated(&mut self, validation: &TrainingValidation) {
        let mean = 100.0 * validation.mean_dsc;
        self.renderer.update_valid(number(MEAN_DSC, mean, " %"));
        let organs = self.plan.iter().flat_map(|plan| &plan.organs);
        for (organ, dsc) in organs.zip(&validation.organ_dsc) {
            if let Some(dsc) = dsc {
                let state = number(&organ_name(organ), 100.0 * dsc, " %");
                self.renderer.update_valid(state);
            }
        }
    }
}

impl Drop for TrainingScreen {
    fn drop(&mut self) {
        self.renderer.end();
    }
}

fn id(name: &str) -> MetricId {
    MetricId::new(Arc::new(name.to_owned()))
}

fn organ_name(organ: &str) -> String {
    format!("DSC {organ}")
}

fn number(name: &str, value: f64, unit: &str) -> MetricState {
    let shown = match value.abs() {
        0.0 => format!("0{unit}"),
        small @ ..0.001 => format!("{small:.2e}{unit}"),
        _ => format!("{value:.4}{unit}"),
    };
    MetricState::Numeric(
        MetricEntry::new(id(name), SerializedEntry::new(shown, value.to_string())),
        Some(NumericEntry::Value(value)),
    )
}
