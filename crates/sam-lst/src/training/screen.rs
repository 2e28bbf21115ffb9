//! burn-train's view of a run on its way.

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

/// Shows a run on a renderer of burn-train, above all on its full screen: curves of losses, learning rate, gate and each
/// organ's validation DSC, progress and time left, and a key to stop.
///
/// ```no_run
/// # fn example(
/// #     model: sam_lst::SamLst,
/// #     dataset: &sam_lst::Dataset,
/// #     config: &sam_lst::TrainingConfig,
/// #     folders: &sam_lst::TrainingFolders,
/// # ) -> Result<(), sam_lst::TrainingError> {
/// let mut screen = None;
/// let trained = sam_lst::train(model, dataset, config, folders, |event| {
///     screen.get_or_insert_with(sam_lst::TrainingScreen::full).show(&event)
/// });
/// drop(screen); // gives the terminal back
/// trained?;
/// # Ok(())
/// # }
/// ```
pub struct TrainingScreen {
    renderer: Box<dyn MetricsRenderer>,
    interrupter: Interrupter,
    plan: Option<TrainingPlan>,
    split: Option<Split>,
}

/// What is in progress.
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
    /// Takes the whole terminal, until this is dropped.
    ///
    /// # Panics
    ///
    /// If standard output is no terminal.
    pub fn full() -> Self {
        use std::io::IsTerminal;
        assert!(std::io::stdout().is_terminal(), "it is shown on a terminal");
        let interrupter = Interrupter::new();
        let renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), None);
        Self::with_renderer(Box::new(renderer), interrupter)
    }

    /// Shows runs on a renderer. The run stops when `interrupter` is told to.
    pub fn with_renderer(renderer: Box<dyn MetricsRenderer>, interrupter: Interrupter) -> Self {
        Self {
            renderer,
            interrupter,
            plan: None,
            split: None,
        }
    }

    /// Shows what happened. Breaks once the user asked for the run to stop.
    pub fn show(&mut self, event: &TrainingEvent<'_>) -> ControlFlow<()> {
        match event {
            TrainingEvent::Planned(plan) => self.begin((*plan).clone()),
            TrainingEvent::Stepped(step) => self.step(step),
            TrainingEvent::Validating(_, done, slices) => self.validating(*done, *slices),
            TrainingEvent::Validated(validation) => self.validated(validation),
            TrainingEvent::CacheFull(_) => {
                self.renderer.log_event_training("cache full".to_owned());
            }
            TrainingEvent::Embedding(done, all) => self.embedding(*done, *all),
            TrainingEvent::Reading(..) | TrainingEvent::Planning(..) => {}
        }
        match self.interrupter.should_stop() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
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
        let epochs = plan.steps / plan.epoch_steps;
        let epochs_done = plan.steps_done / plan.epoch_steps;
        self.renderer
            .start(epochs as usize, epochs_done as usize, None, None);
        self.plan = Some(plan);
    }

    fn register(&mut self, name: &str, unit: Option<&str>, higher_is_better: bool) {
        let attributes = NumericAttributes {
            unit: unit.map(str::to_owned),
            higher_is_better,
        };
        self.renderer.register_metric(MetricDefinition {
            metric_id: id(name),
            name: Arc::new(name.to_owned()),
            description: None,
            attributes: attributes.into(),
        });
    }

    /// Goes over to training or validation.
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
        let epoch_steps = self.plan.as_ref().map_or(1, |plan| plan.epoch_steps);
        self.enter(Split::Training, epoch_steps as usize);
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
        self.renderer
            .update_train(MetricState::Generic(MetricEntry::new(
                id(EMBEDDINGS),
                SerializedEntry::new(computed.clone(), computed),
            )));
        let done = step.step + 1 - step.epoch * epoch_steps;
        self.renderer.update_split(done as usize);
        if done == epoch_steps {
            self.renderer.update_epoch(step.epoch as usize);
        }
    }

    fn embedding(&mut self, done: usize, all: usize) {
        self.enter(Split::Embedding, all);
        self.renderer.update_split(done);
    }

    fn validating(&mut self, done: usize, slices: usize) {
        if done == 0 && self.split == Some(Split::Validation) {
            // Each case is counted for itself.
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
