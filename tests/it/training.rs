//! Whole runs of training.

use crate::support::{Cases, alone, argument};
use burn::tensor::Device;
use sam_lst::rooms::datasets::Validation;
use sam_lst::weights::LadderMetadata;
use sam_lst::{
    CachePrecision, CachedViews, Dataset, DatasetDescription, Fusion, OutputResampling,
    PhantomConfig, Protocol, Report, Trained, TrainingConfig, TrainingError, TrainingEvent,
    TrainingFolders, TrainingPlan, TrainingStep, TrainingValidation, train, train_beside,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

pub fn dataset(folder: &Path) -> Dataset {
    let root = folder.join("phantoms");
    let phantoms = PhantomConfig {
        shape: [6, 40, 44],
        spacing_mm: [30.0, 9.0, 8.5],
        ..PhantomConfig::small(8)
    };
    if !root.is_dir() {
        phantoms.write_dataset(&root, 4, 0, |_| {}).expect("room");
    }
    let mut description = DatasetDescription::synapse();
    description.split.validation = Validation::Fraction {
        fraction: 0.25,
        seed: 0,
    };
    Dataset::open(root, description).expect("phantoms")
}

/// Three cases of six slices: five steps an epoch, the last of them smaller.
pub fn config() -> TrainingConfig {
    let mut config = TrainingConfig::demo(9);
    config.epochs = 3;
    config.batch_size = 4;
    config.validation_epochs = 2;
    config.checkpoint_steps = 2;
    config.output = OutputResampling::Logits;
    config.model.input_size = 64;
    config.optimization.schedule.warmup_steps = 4;
    config
}

pub fn folders(folder: &Path, run: &str) -> TrainingFolders {
    TrainingFolders {
        run: folder.join(run),
        cache: folder.join("cache"),
    }
}

#[derive(Debug, Default)]
pub struct Told {
    pub plan: Option<TrainingPlan>,
    pub steps: Vec<TrainingStep>,
    pub validations: Vec<TrainingValidation>,
    /// How many embeddings were there of how many, and how many steps were done then.
    pub embedded: Vec<[usize; 3]>,
    /// How often it was said that the cache takes no more.
    pub full: usize,
}

impl Told {
    pub fn hear(&mut self, event: TrainingEvent<'_>) -> ControlFlow<()> {
        match event {
            TrainingEvent::Planned(plan) => self.plan = Some(plan.clone()),
            TrainingEvent::Embedding(there, all) => {
                self.embedded.push([there, all, self.steps.len()]);
            }
            TrainingEvent::CacheFull(_) => self.full += 1,
            TrainingEvent::Stepped(step) => self.steps.push(step.clone()),
            TrainingEvent::Validated(validation) => self.validations.push(validation.clone()),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

pub fn run(
    config: &TrainingConfig,
    dataset: &Dataset,
    folders: &TrainingFolders,
) -> Result<(Trained<sam_lst::ResNetSide>, Told), TrainingError> {
    run_beside(&[], config, dataset, folders)
}

/// A run on the CPU and on devices beside it.
pub fn run_beside(
    devices: &[Device],
    config: &TrainingConfig,
    dataset: &Dataset,
    folders: &TrainingFolders,
) -> Result<(Trained<sam_lst::ResNetSide>, Told), TrainingError> {
    let model = config
        .model
        .init(&Device::flex().autodiff())
        .expect("valid");
    let mut told = Told::default();
    let trained = train_beside(model, devices, dataset, config, folders, |event| {
        told.hear(event)
    })?;
    Ok((trained, told))
}

fn goes_on(_: TrainingEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub fn losses(told: &Told) -> Vec<f64> {
    told.steps.iter().map(|step| step.loss).collect()
}

/// Equal names and bits. The metadata have no fixed order in the file.
#[track_caller]
fn assert_same_weights(ours: &TrainingFolders, theirs: &TrainingFolders, name: &str) {
    let [ours, theirs] = [ours, theirs].map(|folders| Cases::read(&folders.run.join(name)));
    assert!(ours.names().eq(theirs.names()) && ours.names().count() > 40);
    for tensor in ours.names() {
        let [ours, theirs] = [&ours, &theirs].map(|file| file.data(tensor));
        assert!(ours == theirs, "{name}: {tensor} differs");
    }
}

fn bytes(folders: &TrainingFolders, name: &str) -> Vec<u8> {
    std::fs::read(folders.run.join(name)).expect("it was written")
}

#[test]
fn a_run_says_what_it_will_do_and_leaves_what_it_did() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let config = config();
    let (trained, told) = run(&config, &dataset, &folders).expect("it runs");

    let plan = told.plan.clone().expect("it was told");
    assert_eq!((plan.cases, plan.slices, plan.validation_cases), (3, 18, 1));
    assert_eq!((plan.epoch_steps, plan.steps, plan.steps_done), (5, 15, 0));
    assert_eq!(plan.unkept_embeddings, 0);
    let kept = plan.kept_embeddings;
    assert_eq!(told.embedded.last(), Some(&[kept, kept, 0]));
    assert!(told.embedded.is_sorted(), "{:?}", told.embedded);
    assert_eq!(
        told.steps.last().expect("15").computed_embeddings,
        plan.kept_embeddings,
        "each embedding once"
    );
    let steps: Vec<u64> = told.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, (0..15).collect::<Vec<_>>());
    assert_eq!(told.steps[0].learning_rate, 3e-3 / 4.0);
    assert!(
        told.steps[14].loss < 0.8 * told.steps[0].loss,
        "{:?}",
        losses(&told)
    );
    let validated: Vec<u64> = told.validations.iter().map(|v| v.epochs).collect();
    assert_eq!(validated, [2, 3]);
    assert_eq!(told.validations[0].organ_dsc.len(), 8);
    let best = told
        .validations
        .iter()
        .map(|v| v.mean_dsc)
        .fold(0.0, f64::max);
    assert_eq!(trained.best_dsc, Some(best));
    assert_eq!(trained.ladder_file, folders.run.join("best.safetensors"));

    let metadata = LadderMetadata::read(&trained.ladder_file).expect("a ladder");
    assert_eq!(metadata.task.expect("known").geometry, config.geometry);
    let rows = |name| {
        String::from_utf8(bytes(&folders, name))
            .expect("text")
            .lines()
            .count()
    };
    assert_eq!((rows("steps.csv"), rows("validation.csv")), (16, 3));
    let receipt: serde_json::Value =
        serde_json::from_slice(&bytes(&folders, "receipt.json")).expect("JSON");
    assert_eq!(receipt["steps"], 15);
    if cfg!(target_os = "linux") {
        assert!(receipt["peak_memory_bytes"].as_u64() > Some(10_000_000));
    }
    assert_eq!(
        receipt["training_cases"].as_array().expect("a list").len(),
        3
    );
    let again = TrainingConfig::released(9).changed_by_file(folders.run.join("config.toml"));
    assert_eq!(again.expect("it was written"), config);

    // A finished run is loaded, not repeated.
    let (loaded, told) = run(&config, &dataset, &folders).expect("it is there");
    assert!(told.steps.is_empty());
    let plan = told.plan.expect("it was told");
    assert_eq!((plan.steps_done, plan.missing_embeddings()), (15, 0));
    assert_eq!(loaded.best_dsc, trained.best_dsc);

    let mut report = Report::new(Protocol::Reference, ["aorta"]);
    report.add(
        "0007",
        Protocol::Reference
            .score(&[1; 8], &[1; 8], [2; 3], None, &[1])
            .expect("equal"),
    );
    for _ in 0..2 {
        loaded
            .keep_scores(std::slice::from_ref(&report))
            .expect("room");
    }
    let receipt: serde_json::Value =
        serde_json::from_slice(&bytes(&folders, "receipt.json")).expect("JSON");
    assert_eq!(receipt["steps"], 15, "the rest is still there");
    let scores = receipt["scores"].as_array().expect("a report a protocol");
    assert_eq!(scores.len(), 1);
    assert!(scores[0].to_string().contains("0007"));
    assert!(folders.run.join("scores-reference.csv").is_file());
}

#[test]
fn training_with_a_cache_is_training_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let with = |name: &str, views: &str, precision| {
        let mut config = config();
        config.epochs = 2;
        config.cache.views = views.parse().expect("views");
        config.cache.precision = precision;
        let folders = folders(folder.path(), name);
        let (_, told) = run(&config, &dataset, &folders).expect("it runs");
        (losses(&told), folders, told)
    };
    let (losses, without, _) = with("none", "0", CachePrecision::F32);
    for (name, views) in [("some", "discrete"), ("all", "all"), ("again", "all")] {
        let (found, folders, told) = with(name, views, CachePrecision::F32);
        assert_eq!(found, losses, "{name}");
        assert_same_weights(&folders, &without, "ladder.safetensors");
        if name == "again" {
            assert_eq!(told.steps[9].computed_embeddings, 0, "all were there");
            let plan = told.plan.expect("it was told");
            assert_eq!(plan.found_embeddings, plan.kept_embeddings);
            assert_eq!(plan.embedding_time, None, "nothing is left to time");
        }
    }
    let (half, ..) = with("half", "all", CachePrecision::F16);
    for (step, (half, whole)) in half.iter().zip(&losses).enumerate() {
        assert!((half - whole).abs() < 5e-3, "step {step}: {half}, {whole}");
    }
    assert_ne!(half, losses);
}

#[test]
fn the_mean_gradient_of_two_batches_is_that_of_both_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let with = |name: &str, batch_size, accumulated_batches| {
        let mut config = config();
        config.epochs = 2;
        config.batch_size = batch_size;
        config.accumulated_batches = accumulated_batches;
        // What does not look at the batch as a whole.
        config.model.fusion = Fusion::SamOnly;
        config.dice_weight = 0.0;
        losses(
            &run(&config, &dataset, &folders(folder.path(), name))
                .expect("it runs")
                .1,
        )
    };
    // 18 slices: steps of 6, 6, 6 either way.
    let (together, apart) = (with("together", 6, 1), with("apart", 2, 3));
    assert_eq!((together.len(), apart.len()), (6, 6));
    for (together, apart) in together.iter().zip(&apart) {
        assert!((together - apart).abs() < 1e-4, "{together}, {apart}");
    }
}

#[test]
fn training_stops_when_validation_gets_no_better() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let mut config = config();
    config.epochs = 9;
    config.validation_epochs = 1;
    config.patience = Some(2);
    config.optimization.schedule.base = 1e-9;
    let (_, told) = run(&config, &dataset, &folders(folder.path(), "run")).expect("it runs");
    let best = told
        .validations
        .iter()
        .rposition(|v| v.best)
        .expect("the first at least");
    assert_eq!(told.validations.len(), best + 3);
    assert!(told.validations.len() < 9);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let mut config = config();
    // The second step finds weights that are finite, but too large to compute with.
    config.optimization.schedule.base = 1e30;
    config.checkpoint_steps = 1;
    for _ in 0..2 {
        let message = run(&config, &dataset, &folders)
            .expect_err("it cannot go on")
            .to_string();
        assert!(
            message.starts_with("step 1 (epoch 0)") && message.contains("is not finite; slices 00"),
            "{message}"
        );
        let mut names: Vec<String> = std::fs::read_dir(&folders.run)
            .expect("a folder")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .filter(|name| name.contains("checkpoint") || name.contains("ladder"))
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["checkpoint-0000000001-000000"],
            "after the first step"
        );
    }
}

#[test]
fn a_run_that_is_asked_to_stop_saves_and_goes_on_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let whole = folders(folder.path(), "whole");
    run(&config(), &dataset, &whole).expect("it runs");

    let stopped = folders(folder.path(), "stopped");
    let stop = |when: &dyn Fn(&TrainingEvent<'_>) -> bool, steps_done: u64| {
        let model = config()
            .model
            .init(&Device::flex().autodiff())
            .expect("valid");
        let result = train(model, &dataset, &config(), &stopped, |event| {
            match when(&event) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        match result {
            Err(TrainingError::Stopped { steps }) => assert_eq!(steps, steps_done),
            other => panic!("{:?}", other.err()),
        }
    };
    let after = |step: u64| move |event: &TrainingEvent<'_>| matches!(event, TrainingEvent::Stepped(done) if done.step == step);
    stop(&|event| matches!(event, TrainingEvent::Planned(_)), 0);
    stop(&after(0), 1);
    stop(&after(4), 5); // the last of an epoch
    stop(&after(9), 10); // where validation is due
    for _ in 0..2 {
        stop(&|event| matches!(event, TrainingEvent::Validating(..)), 10);
    }
    stop(&|event| matches!(event, TrainingEvent::Validated(_)), 10);
    // What has no part in the weights may be another meanwhile.
    let mut config = config();
    config.workers = 3;
    config.checkpoint_steps = 4;
    config.cache.views = CachedViews::IDENTITY;
    config.cache.limit_gb = Some(1.0);
    run(&config, &dataset, &stopped).expect("it goes on");
    let written = TrainingConfig::released(9).changed_by_file(stopped.run.join("config.toml"));
    assert_eq!(written.expect("it was written"), config);
    for name in ["ladder.safetensors", "best.safetensors"] {
        assert_same_weights(&stopped, &whole, name);
    }
    for name in ["steps.csv", "validation.csv"] {
        assert!(
            bytes(&stopped, name) == bytes(&whole, name),
            "{name} differs"
        );
    }
}

#[test]
fn two_runs_do_not_share_a_folder_and_another_run_is_not_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let mut config = config();
    config.epochs = 1;
    let model = || {
        config
            .model
            .init(&Device::flex().autodiff())
            .expect("valid")
    };
    let mut tried = false;
    train(model(), &dataset, &config, &folders, |event| {
        if let (TrainingEvent::Stepped(_), false) = (event, tried) {
            tried = true;
            let second = train(model(), &dataset, &config, &folders, goes_on);
            let message = second.expect_err("it is in use").to_string();
            assert!(
                message.contains("another process trains into this folder"),
                "{message}"
            );
        }
        ControlFlow::Continue(())
    })
    .expect("the first goes on");
    assert!(tried);

    let mut other = config.clone();
    other.seed = 3;
    let message = run(&other, &dataset, &folders)
        .expect_err("another run")
        .to_string();
    assert!(
        message.contains("`seed = 0`, asked for is `seed = 3`"),
        "{message}"
    );

    let mut too_many = config.clone();
    too_many.model.decoder.num_masks = 5;
    let message = run(&too_many, &dataset, &folders)
        .expect_err("four organs")
        .to_string();
    assert!(
        message.contains("9 classes") && message.contains("5 masks"),
        "{message}"
    );

    let plain = config.model.init(&Device::flex()).expect("valid");
    let refused = train(plain, &dataset, &config, &folders, goes_on);
    assert!(matches!(refused, Err(TrainingError::NoAutodiff)));
    let mut frozen = config.clone();
    frozen.model.fusion = Fusion::Untrained;
    let refused = run(&frozen, &dataset, &folders);
    assert!(matches!(refused, Err(TrainingError::NothingTrains)));
}

#[test]
fn views_that_are_not_kept_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let mut config = config();
    config.cache.views = CachedViews::IDENTITY;
    let (_, told) = run(&config, &dataset, &folders(folder.path(), "run")).expect("it runs");
    let plan = told.plan.clone().expect("it was told");
    assert!(plan.kept_embeddings <= 18 && plan.unkept_embeddings > 18);
    assert_eq!(
        told.steps.last().expect("15").computed_embeddings,
        plan.kept_embeddings + plan.unkept_embeddings
    );
    let mut side = config.clone();
    side.model.fusion = Fusion::SideOnly;
    let (_, told) = run(&side, &dataset, &folders(folder.path(), "side")).expect("it runs");
    let plan = told.plan.clone().expect("it was told");
    assert_eq!((plan.embedding_time, plan.unkept_embeddings), (None, 0));
    assert!(told.steps.iter().all(|step| step.gate.is_none()));
}

/// Not a test by itself: the process that the next one kills.
#[test]
#[ignore = "run by a_run_that_is_killed_ends_as_one_that_is_not"]
fn child() {
    let Some(folder) = argument() else {
        return;
    };
    // Bit for bit what a program makes that leaves the work to other threads.
    sam_lst::compute_on_this_thread();
    assert!(!sam_lst::compute_on_this_thread(), "once in a program");
    let folder = Path::new(&folder);
    run(&config(), &dataset(folder), &folders(folder, "killed")).expect("it runs");
}

#[test]
fn a_run_that_is_killed_ends_as_one_that_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folders(folder.path(), "whole");
    run(&config(), &dataset(folder.path()), &whole).expect("it runs");

    let killed = folders(folder.path(), "killed");
    let rows = || match std::fs::read_to_string(killed.run.join("steps.csv")) {
        Ok(text) => text.lines().count().saturating_sub(1),
        Err(_) => 0,
    };
    let start = || {
        alone("training::child", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts")
    };
    let mut kills = 0;
    // Before a checkpoint, after one, within another epoch.
    for (rows_at_least, later_ms) in [(1, 0), (4, 30), (8, 7), (11, 60)] {
        let mut child = start();
        while rows() < rows_at_least && child.try_wait().expect("ours").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(later_ms));
        child.kill().expect("SIGKILL");
        kills += usize::from(!child.wait().expect("ours").success());
    }
    assert!(kills >= 2, "it was killed {kills} times");
    assert!(start().wait().expect("ours").success());
    for name in ["steps.csv", "validation.csv"] {
        assert!(
            bytes(&killed, name) == bytes(&whole, name),
            "{name} differs"
        );
    }
    for name in ["ladder.safetensors", "best.safetensors"] {
        assert_same_weights(&killed, &whole, name);
    }
    let left = std::fs::read_dir(&killed.run)
        .expect("a folder")
        .filter(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            name.to_string_lossy().contains("checkpoint-")
        });
    assert_eq!(left.count(), 1, "one checkpoint is kept");
}
