//! What burn-train's renderers receive of a run.

use sam_lst::TrainingEvent;
use sam_lst::training::burn_train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use sam_lst::training::burn_train::metric::MetricDefinition;
use sam_lst::training::burn_train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use sam_lst::training::burn_train::{Interrupter, LearnerSummary};
use sam_lst::training::{TrainingPlan, TrainingScreen, TrainingStep, TrainingValidation};
use std::sync::{Arc, Mutex};

/// A renderer that records a line for each call.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn record(&self, line: String) {
        self.0.lock().expect("no panic").push(line);
    }

    fn metric(&self, split: &str, state: &MetricState) {
        let entry = match state {
            MetricState::Generic(entry) => entry,
            MetricState::Numeric(entry, value) => {
                let value = value.as_ref().expect("a value").current();
                assert_eq!(entry.serialized_entry.serialized, value.to_string());
                entry
            }
        };
        let shown = &entry.serialized_entry.formatted;
        self.record(format!("{split} {:?} {shown}", entry.metric_id));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

impl MetricsRendererTraining for Recorder {
    fn update_train(&mut self, state: MetricState) {
        self.metric("train", &state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.metric("valid", &state);
    }
}

impl MetricsRendererEvaluation for Recorder {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {
        unreachable!("a run only trains and validates");
    }

    fn on_test_end(
        &mut self,
        _: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn core::error::Error>> {
        unreachable!("a run only trains and validates");
    }
}

impl TrainingProgressLogger for Recorder {
    fn start(&mut self, epochs: usize, first: usize, _: Option<usize>, _: Option<&str>) {
        self.record(format!("start {first} of {epochs}"));
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.record(format!("epoch {epoch}"));
    }

    fn start_split(&mut self, split: &str, items: usize) {
        self.record(format!("{split} of {items}"));
    }

    fn update_split(&mut self, items: usize) {
        self.record(format!("at {items}"));
    }

    fn end_split(&mut self) {
        self.record("split ends".to_owned());
    }

    fn end(&mut self) {
        self.record("end".to_owned());
    }

    fn log_event_training(&mut self, event: String) {
        self.record(event);
    }
}

impl EvaluationProgressLogger for Recorder {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for Recorder {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.record(format!("metric {}", definition.name));
    }
}

fn step(step: u64) -> TrainingStep {
    TrainingStep {
        step,
        epoch: step / 2,
        loss: 0.75,
        cross_entropy: 1.5,
        dice_loss: 0.5,
        learning_rate: 4e-6,
        gate: Some(0.5),
        computed_embeddings: 12,
    }
}

fn plan() -> TrainingPlan {
    TrainingPlan {
        training_cases: 3,
        slices: 8,
        validation_cases: 1,
        trained_parameters: 10,
        steps_per_epoch: 2,
        total_steps: 6,
        completed_steps: 2,
        cacheable_embeddings: 8,
        cached_embeddings: 0,
        uncached_embeddings: 0,
        cache_bytes: 100,
        time_per_embedding: None,
        devices: 1,
        organs: vec!["liver".to_owned(), "spleen".to_owned()],
        organ_cases: vec![3, 2],
    }
}

#[test]
fn a_renderer_shows_a_run_and_can_stop_it() {
    let recorder = Recorder::default();
    let interrupter = Interrupter::new();
    let mut screen = TrainingScreen::with_renderer(Box::new(recorder.clone()), interrupter.clone());
    assert!(screen.show(&TrainingEvent::Planned(&plan())).is_continue());
    let metrics = [
        "Loss",
        "Cross entropy",
        "Dice loss",
        "Mean DSC",
        "DSC liver",
        "DSC spleen",
        "Learning rate",
        "Gate",
        "Embeddings computed",
    ];
    let mut expected: Vec<String> = metrics.map(|name| format!("metric {name}")).into();
    expected.push("start 2 of 3".to_owned());
    assert_eq!(recorder.take(), expected);

    for done in [5, 8] {
        let event = TrainingEvent::Precomputing { done, total: 8 };
        assert!(screen.show(&event).is_continue());
    }
    assert_eq!(recorder.take(), ["train of 8", "at 5", "at 8"]);

    let metric = |split: &str, name: &str, value: &str| {
        format!("{split} MetricId {{ id: {name:?} }} {value}")
    };
    assert!(screen.show(&TrainingEvent::Step(&step(2))).is_continue());
    let values = [
        metric("train", "Loss", "0.7500"),
        metric("train", "Cross entropy", "1.5000"),
        metric("train", "Dice loss", "0.5000"),
        metric("train", "Learning rate", "4.00e-6"),
        metric("train", "Gate", "0.5000"),
        metric("train", "Embeddings computed", "12"),
    ];
    let mut lines = recorder.take();
    assert_eq!(lines.remove(0), "split ends");
    assert_eq!(lines.remove(0), "train of 2");
    assert_eq!(lines.pop().expect("the progress"), "at 1");
    assert_eq!(lines, values);

    assert!(screen.show(&TrainingEvent::Step(&step(3))).is_continue());
    assert_eq!(recorder.take()[values.len()..], ["at 2", "epoch 2"]);
    for done in [0, 4, 6] {
        let event = TrainingEvent::Validating { case: "0003", done, total: 6 };
        assert!(screen.show(&event).is_continue());
    }
    let validation = TrainingValidation {
        epochs: 2,
        mean_dsc: 0.25,
        organ_dsc: vec![Some(0.25), None],
        best: true,
    };
    assert!(screen.show(&TrainingEvent::Validated(&validation)).is_continue());
    let expected = [
        "split ends".to_owned(),
        "valid of 6".to_owned(),
        "at 0".to_owned(),
        "at 4".to_owned(),
        "at 6".to_owned(),
        metric("valid", "Mean DSC", "25.0000 %"),
        metric("valid", "DSC liver", "25.0000 %"),
    ];
    assert_eq!(recorder.take(), expected);

    assert!(screen.show(&TrainingEvent::Step(&step(4))).is_continue());
    assert_eq!(recorder.take()[..2], ["split ends", "train of 2"]);
    interrupter.stop(None);
    assert!(screen.show(&TrainingEvent::Step(&step(5))).is_break());
    recorder.take();
    drop(screen);
    assert_eq!(recorder.take(), ["end"]);
}
