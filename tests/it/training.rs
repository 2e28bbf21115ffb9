//! Whole training runs.

use crate::support::{Cases, process_argument, test_process};
use burn::tensor::Device;
use sam_lst::datasets::{Augmentation, Case, Validation};
use sam_lst::inference::OutputResampling;
use sam_lst::model::{EmbeddingPrecision, NetworkMetadata};
use sam_lst::training::{
    BURN_VERSION, TrainingError, TrainingPlan, TrainingStep, TrainingValidation,
};
use sam_lst::{
    CachedViews, Dataset, DatasetDescription, Fusion, Outcome, PhantomConfig, PretrainedModel,
    Protocol, Report, SegmentationConfig, Split, Trained, Training, TrainingConfig, TrainingEvent,
    TrainingFolders,
};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Four phantoms of six slices: three training cases and one validation case.
pub fn dataset(folder: &Path) -> Dataset {
    dataset_of(folder, 6)
}

/// Four phantoms of `slices` slices: three training cases and one validation case.
pub fn dataset_of(folder: &Path, slices: usize) -> Dataset {
    let root = folder.join("phantoms");
    let phantoms = PhantomConfig {
        shape: [slices, 40, 44],
        spacing_mm: [180.0 / slices as f64, 9.0, 8.5],
        ..PhantomConfig::small(8)
    };
    if !root.is_dir() {
        phantoms.write_dataset(&root, 4, 0, |_| {}).expect("write phantoms");
    }
    let mut description = DatasetDescription::synapse();
    description.split.validation = Validation::Fraction { fraction: 0.25, seed: 0 };
    Dataset::open(root, description).expect("open phantoms")
}

/// On 18 slices: five steps in an epoch, the last with a smaller batch.
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

/// Loads a trained network without a foundation and segments a case with it.
pub fn segments_a_case(network_file: &Path, data: &Dataset) {
    let loaded = PretrainedModel::load(network_file, None, &Device::flex());
    let loaded = loaded.expect("loads the network");
    let task = loaded.task().expect("a task");
    let image = data.read(&data.all_cases()[0]).expect("reads a case").image;
    let mut segmenter = loaded.segmenter(SegmentationConfig::of_task(task));
    let classes = segmenter.segment(&image, |_| {}).expect("segments");
    assert_eq!(classes.shape(), image.shape());
}

pub fn folders(folder: &Path, run: &str) -> TrainingFolders {
    TrainingFolders { run: folder.join(run), cache: folder.join("cache") }
}

/// The events of a run.
#[derive(Debug, Default)]
pub struct RecordedEvents {
    pub plan: Option<TrainingPlan>,
    pub steps: Vec<TrainingStep>,
    pub validations: Vec<TrainingValidation>,
    /// Precomputed embeddings, all embeddings to precompute, and the steps completed at that time.
    pub precomputing: Vec<[usize; 3]>,
    /// Number of [`TrainingEvent::CacheFull`] events.
    pub cache_full: usize,
}

impl RecordedEvents {
    pub fn record(&mut self, event: TrainingEvent<'_>) -> ControlFlow<()> {
        match event {
            TrainingEvent::Planned(plan) => self.plan = Some(plan.clone()),
            TrainingEvent::Precomputing { done, total } => {
                self.precomputing.push([done, total, self.steps.len()]);
            }
            TrainingEvent::CacheFull(_) => self.cache_full += 1,
            TrainingEvent::Step(step) => self.steps.push(step.clone()),
            TrainingEvent::Validated(validation) => self.validations.push(validation.clone()),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    pub fn plan(&self) -> &TrainingPlan {
        self.plan.as_ref().expect("a planned event")
    }

    pub fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.loss).collect()
    }

    /// Embeddings that the run's process had computed after its last step.
    pub fn computed_embeddings(&self) -> usize {
        self.steps.last().expect("at least one step").computed_embeddings
    }
}

type FinishedRun = (Trained<sam_lst::Ladder>, RecordedEvents);

/// Trains on the CPU to the end.
pub fn run(
    config: &TrainingConfig,
    dataset: &Dataset,
    folders: &TrainingFolders,
) -> Result<FinishedRun, TrainingError> {
    run_on(&[], config, dataset, folders)
}

/// Trains on several devices to the end. The first device is the CPU.
pub fn run_on(
    devices: &[Device],
    config: &TrainingConfig,
    dataset: &Dataset,
    folders: &TrainingFolders,
) -> Result<FinishedRun, TrainingError> {
    let model = config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let mut events = RecordedEvents::default();
    let training = Training::new(config.clone(), folders.clone()).devices(devices);
    let outcome = training.run(model, dataset, |event| events.record(event))?;
    Ok((outcome.finished().expect("no stop was requested"), events))
}

fn ignore_event(_: TrainingEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn stop_after_a_step(event: TrainingEvent<'_>) -> ControlFlow<()> {
    match event {
        TrainingEvent::Step(_) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

/// Asserts equal names and bits. The order of the metadata in the file may differ.
#[track_caller]
fn assert_same_weights(actual: &TrainingFolders, expected: &TrainingFolders, name: &str) {
    let [actual, expected] = [actual, expected].map(|folders| Cases::read(&folders.run.join(name)));
    assert!(actual.names().eq(expected.names()) && actual.names().count() > 40);
    for tensor in actual.names() {
        let [actual, expected] = [&actual, &expected].map(|file| file.data(tensor));
        assert!(actual == expected, "{name}: {tensor} differs");
    }
}

fn bytes(folders: &TrainingFolders, name: &str) -> Vec<u8> {
    std::fs::read(folders.run.join(name)).expect("a file of the run")
}

fn run_summary(folders: &TrainingFolders) -> serde_json::Value {
    serde_json::from_slice(&bytes(folders, "run_summary.json")).expect("valid JSON")
}

/// Names in the folder of a run that contain one of `parts`, sorted.
fn names_containing(folders: &TrainingFolders, parts: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(&folders.run).expect("list the run folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("a directory entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| parts.iter().any(|part| name.contains(part)))
        .collect();
    names.sort();
    names
}

/// Configuration, data and folders of a run of one epoch.
fn one_epoch(at: &Path) -> (TrainingConfig, Dataset, TrainingFolders) {
    (TrainingConfig { epochs: 1, ..config() }, dataset(at), folders(at, "run"))
}

#[test]
fn a_run_reports_its_plan_and_its_progress_and_writes_its_files() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let config = config();
    let (trained, events) = run(&config, &dataset, &folders).expect("the run finishes");

    let plan = events.plan();
    assert_eq!((plan.training_cases, plan.slices, plan.validation_cases), (3, 18, 1));
    assert_eq!((plan.steps_per_epoch, plan.total_steps, plan.completed_steps), (5, 15, 0));
    assert_eq!(plan.uncached_embeddings, 0);
    let embeddings = plan.cacheable_embeddings;
    assert_eq!(events.precomputing.last(), Some(&[embeddings, embeddings, 0]));
    assert!(events.precomputing.is_sorted(), "{:?}", events.precomputing);
    assert_eq!(events.computed_embeddings(), embeddings, "each embedding is computed once");
    let steps: Vec<u64> = events.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, (0..15).collect::<Vec<_>>());
    assert_eq!(events.steps[0].learning_rate, 3e-3 / 4.0);
    assert!(events.steps[14].loss < 0.8 * events.steps[0].loss, "{:?}", events.losses());
    let validated: Vec<u64> = events.validations.iter().map(|v| v.epochs).collect();
    assert_eq!(validated, [2, 3]);
    assert_eq!(events.validations[0].organ_dsc.len(), 8);
    let best = events.validations.iter().map(|v| v.mean_dsc).fold(0.0, f64::max);
    assert_eq!(trained.best_dsc, Some(best));
    assert_eq!(trained.network_file, folders.run.join("best.safetensors"));

    let metadata = NetworkMetadata::read(&trained.network_file).expect("a ladder checkpoint");
    assert_eq!(metadata.task.expect("a task").geometry, config.geometry);
    let rows = |name| String::from_utf8(bytes(&folders, name)).expect("UTF-8").lines().count();
    assert_eq!((rows("steps.csv"), rows("validation.csv")), (16, 3));
    let written =
        TrainingConfig::released(9).with_overrides_from_file(folders.run.join("config.toml"));
    assert_eq!(written.expect("a valid file"), config);

    // A finished run is loaded, not repeated.
    let (loaded, events) = run(&config, &dataset, &folders).expect("the run is loaded");
    assert!(events.steps.is_empty());
    let plan = events.plan();
    assert_eq!((plan.completed_steps, plan.missing_embeddings()), (15, 0));
    assert_eq!(loaded.best_dsc, trained.best_dsc);
}

#[test]
fn the_run_summary_describes_the_run_and_its_scores() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let (trained, events) = run(&config(), &dataset, &folders).expect("the run finishes");
    let summary = run_summary(&folders);
    assert_eq!(summary["steps"], 15);
    assert_eq!(summary["trained_parameters"], events.plan().trained_parameters);
    assert_eq!(summary["burn_version"], locked_version("burn"));
    assert_eq!(summary["burn_version"], BURN_VERSION);
    if cfg!(target_os = "linux") {
        assert!(summary["peak_memory_bytes"].as_u64() > Some(10_000_000));
    }
    assert_eq!(summary["training_cases"].as_array().expect("a list").len(), 3);

    let mut report = Report::new(Protocol::Reference, ["aorta"]);
    report.add(
        "0007",
        Protocol::Reference.score(&[1; 8], &[1; 8], [2; 3], None, &[1]).expect("equal shapes"),
    );
    for _ in 0..2 {
        trained.save_scores(std::slice::from_ref(&report)).expect("write scores");
    }
    let summary = run_summary(&folders);
    assert_eq!(summary["steps"], 15, "the rest remains");
    let scores = summary["scores"].as_array().expect("one report per protocol");
    assert_eq!(scores.len(), 1, "earlier scores are replaced");
    assert!(scores[0].to_string().contains("0007"));
    assert!(folders.run.join("scores-reference.csv").is_file());
}

/// The version of a package in the workspace's `Cargo.lock`.
fn locked_version(package: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock: toml::Table =
        std::fs::read_to_string(file).expect("read Cargo.lock").parse().expect("valid TOML");
    let packages = lock["package"].as_array().expect("a list of packages");
    let versions: Vec<&str> = packages
        .iter()
        .filter(|entry| entry["name"].as_str() == Some(package))
        .map(|entry| entry["version"].as_str().expect("a version"))
        .collect();
    let [version] = versions.as_slice() else {
        panic!("Cargo.lock has {package} in the versions {versions:?}; expected one")
    };
    (*version).to_owned()
}

#[test]
fn the_summary_of_a_run_of_version_0_1_0_is_renamed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    run(&config, &dataset, &folders).expect("the run finishes");
    let [old, new] = ["receipt.json", "run_summary.json"].map(|name| folders.run.join(name));
    std::fs::rename(&new, &old).expect("rename the summary");
    let summary = std::fs::read(&old).expect("read the summary");

    let (trained, events) = run(&config, &dataset, &folders).expect("the run is loaded");
    assert!(events.steps.is_empty());
    assert!(!old.exists());
    assert!(bytes(&folders, "run_summary.json") == summary);
    // Scores are added to the renamed file.
    let mut report = Report::new(Protocol::Reference, ["aorta"]);
    let scores = Protocol::Reference.score(&[1; 8], &[1; 8], [2; 3], None, &[1]);
    report.add("0007", scores.expect("equal shapes"));
    trained.save_scores(&[report]).expect("write scores");
    assert!(!old.exists());
    assert_eq!(run_summary(&folders)["scores"].as_array().expect("a list").len(), 1);
}

#[test]
fn results_without_the_settings_of_their_run_are_kept() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    run(&config, &dataset, &folders).expect("the run finishes");
    std::fs::remove_file(folders.run.join("config.toml")).expect("remove the settings");
    let names = || names_containing(&folders, &[""]);
    let (before, ladder) = (names(), bytes(&folders, "best.safetensors"));
    let error = run(&config, &dataset, &folders).expect_err("refused");
    assert!(matches!(error, TrainingError::NoRun { .. }), "{error}");
    assert!(names() == before && bytes(&folders, "best.safetensors") == ladder);
}

#[test]
fn a_run_is_not_resumed_on_other_data() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    let model = || config.model.init(&Device::flex().autodiff()).expect("valid");
    let training = Training::new(config.clone(), folders.clone());
    training.run(model(), &dataset, stop_after_a_step).expect("stopped after a step");

    // Another patient's label of the same size, with the same time of modification.
    let case = &dataset.cases(Split::Train).expect("three cases")[0];
    let other = &dataset.cases(Split::Train).expect("three cases")[1];
    let label = |case: &Case| case.files.paths()[1].to_owned();
    let original = std::fs::read(label(case)).expect("a label");
    let time = std::fs::metadata(label(case)).and_then(|data| data.modified()).expect("a time");
    std::fs::copy(label(other), label(case)).expect("replaces the label");
    let replaced = std::fs::File::options().write(true).open(label(case)).expect("opens");
    replaced.set_modified(time).expect("sets the time");
    let error =
        training.run(model(), &dataset, stop_after_a_step).expect_err("refused").to_string();
    assert!(error.contains(&format!("files of case {} are not", case.name)), "{error}");

    std::fs::write(label(case), original).expect("restores the label");
    let outcome = training.run(model(), &dataset, ignore_event).expect("resumed");
    assert!(outcome.finished().is_some());
    let summary = run_summary(&folders);
    let recorded = &summary["training_cases"][0]["files_sha256"];
    assert_eq!(*recorded, case.files.sha256().expect("readable"));
}

#[test]
fn a_run_of_version_0_1_0_without_hashes_is_resumed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    run(&config, &dataset, &folders).expect("the run finishes");
    let names: String = [Split::Train, Split::Validation]
        .into_iter()
        .flat_map(|split| dataset.cases(split).expect("cases"))
        .map(|case| format!("{}: {}\n", case.split, case.name))
        .collect();
    std::fs::write(folders.run.join("cases.txt"), names).expect("writes");
    let (_, events) = run(&config, &dataset, &folders).expect("the run is loaded");
    assert!(events.steps.is_empty());
}

#[test]
fn a_run_that_could_not_start_does_not_occupy_its_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    let image = dataset.cases(Split::Train).expect("three cases")[0].files.paths()[0].to_owned();
    let intact = std::fs::read(&image).expect("an image");
    std::fs::write(&image, &intact[..intact.len() / 2]).expect("damages the image");
    run(&config, &dataset, &folders).map(|_| ()).expect_err("the image is damaged");
    std::fs::write(&image, intact).expect("restores the image");
    let mut other = config;
    other.batch_size = 3;
    run(&other, &dataset, &folders).expect("other settings in the same folder");
}

#[test]
fn equal_ladders_are_equal_files() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let model = config().model.init(&Device::flex().autodiff()).expect("valid");
    let files = ["a", "b"].map(|name| folder.path().join(name));
    for file in &files {
        model.save_network(file).expect("save");
    }
    let [a, b] = files.map(|file| std::fs::read(file).expect("read"));
    assert!(a == b, "the files differ");
}

#[test]
fn a_report_has_scores_pictures_and_the_learning_curve() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    let (trained, _) = run(&config, &dataset, &folders).expect("the run finishes");
    let mut progress = Vec::new();
    let report = trained
        .write_report(&dataset, |case, done, total| progress.push((case.to_owned(), done, total)))
        .expect("the report is written");
    // There are no test cases.
    assert_eq!((report.split, report.cases), (Split::Validation, 1));
    let case = &dataset.cases(Split::Validation).expect("one case")[0].name;
    assert_eq!(progress.first(), Some(&(case.clone(), 0, 6)));
    assert_eq!(progress.last(), Some(&(case.clone(), 6, 6)));
    let protocols: Vec<&str> = report.reports.iter().map(|r| r.protocol().name()).collect();
    assert_eq!(protocols, ["reference", "strict"]);
    for protocol in protocols {
        for extension in ["csv", "json", "md"] {
            let name = format!("scores-{protocol}.{extension}");
            assert!(!bytes(&folders, &name).is_empty(), "{name}");
        }
    }
    assert_eq!(run_summary(&folders)["scores"].as_array().expect("a list").len(), 2);
    assert_eq!(report.pictures, folders.run.join("pictures"));
    let pictures = std::fs::read_dir(&report.pictures).expect("list pictures");
    assert_eq!(pictures.count(), 3);
    assert_eq!(report.learning_curve, folders.run.join("learning-curve.svg"));
    let curve = std::fs::read_to_string(&report.learning_curve).expect("read the curve");
    assert!(curve.starts_with("<svg") && curve.contains("training loss"), "{curve}");
}

#[test]
fn training_with_a_cache_equals_training_without() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let with = |name: &str, views: &str, precision| {
        let mut config = config();
        config.epochs = 2;
        config.cache.views = views.parse().expect("valid views");
        config.cache.precision = precision;
        let folders = folders(folder.path(), name);
        let (_, events) = run(&config, &dataset, &folders).expect("the run finishes");
        (events.losses(), folders, events)
    };
    let (losses, without, _) = with("none", "0", EmbeddingPrecision::F32);
    for (name, views) in [("some", "discrete"), ("all", "all"), ("again", "all")] {
        let (found, folders, events) = with(name, views, EmbeddingPrecision::F32);
        assert_eq!(found, losses, "{name}");
        assert_same_weights(&folders, &without, "ladder.safetensors");
        if name == "again" {
            assert_eq!(events.computed_embeddings(), 0, "all were cached");
            let plan = events.plan();
            assert_eq!(plan.cached_embeddings, plan.cacheable_embeddings);
            assert_eq!(plan.time_per_embedding, None, "there is nothing to time");
        }
    }
    let (half, ..) = with("half", "all", EmbeddingPrecision::F16);
    for (step, (half, single)) in half.iter().zip(&losses).enumerate() {
        assert!((half - single).abs() < 5e-3, "step {step}: {half}, {single}");
    }
    assert_ne!(half, losses);
}

/// With upright views, each slice is embedded once, and its features are moved.
#[test]
fn upright_views_need_one_embedding_of_each_slice() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let with = |name: &str, views: &str, taps: bool| {
        let mut config = config().with_accurate_training();
        config.epochs = 2;
        config.batch_size = 4;
        config.cache.views = views.parse().expect("valid views");
        config.cache.precision = EmbeddingPrecision::F32;
        if taps {
            config.model = config.model.with_true_ladder();
        }
        let folders = folders(folder.path(), name);
        let (_, events) = run(&config, &dataset, &folders).expect("the run finishes");
        (events.losses(), folders, events)
    };
    for (taps, plain, cached) in [(false, "a", "b"), (true, "c", "d")] {
        let (losses, without, events) = with(plain, "0", taps);
        assert_eq!(events.plan().uncached_embeddings, 36);
        let (found, folders, events) = with(cached, "identity", taps);
        assert_eq!(found, losses);
        assert_same_weights(&folders, &without, "ladder.safetensors");
        assert_eq!(events.plan().cacheable_embeddings, 18);
        assert_eq!((events.plan().uncached_embeddings, events.computed_embeddings()), (0, 18));
    }
}

#[test]
fn the_mean_gradient_of_accumulated_batches_equals_that_of_one_large_batch() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let with = |name: &str, batch_size, accumulated_batches| {
        let mut config = config();
        config.epochs = 2;
        config.batch_size = batch_size;
        config.accumulated_batches = accumulated_batches;
        // Without batch norm and Dice, which depend on the batch as a whole.
        config.model.fusion = Fusion::SamOnly;
        config.dice_weight = 0.0;
        let finished = run(&config, &dataset, &folders(folder.path(), name));
        finished.expect("the run finishes").1.losses()
    };
    // 18 slices: three steps of six slices in an epoch in both cases.
    let (one, accumulated) = (with("one", 6, 1), with("accumulated", 2, 3));
    assert_eq!((one.len(), accumulated.len()), (6, 6));
    for (one, accumulated) in one.iter().zip(&accumulated) {
        assert!((one - accumulated).abs() < 1e-4, "{one}, {accumulated}");
    }
}

#[test]
fn training_stops_early_when_validation_does_not_improve() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let mut config = config();
    config.epochs = 9;
    config.validation_epochs = 1;
    config.patience = Some(2);
    config.optimization.schedule.base = 1e-9;
    let finished = run(&config, &dataset, &folders(folder.path(), "run"));
    let validations = finished.expect("the run finishes").1.validations;
    let best = validations.iter().rposition(|v| v.best).expect("at least the first");
    assert_eq!(validations.len(), best + 3);
    assert!(validations.len() < 9);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_preserves_the_last_checkpoint() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let mut config = config();
    // After the first step the weights are finite, but too large for the second.
    config.optimization.schedule.base = 1e30;
    config.checkpoint_steps = 1;
    for _ in 0..2 {
        let message = run(&config, &dataset, &folders).expect_err("a diverged run").to_string();
        assert!(
            message.starts_with("training diverged at step 1 (epoch 0): ")
                && message.contains("is not finite, in slices 00"),
            "{message}"
        );
        let names = names_containing(&folders, &["checkpoint", "ladder"]);
        assert_eq!(names, ["checkpoint-0000000001-000000"], "after the first step");
    }
}

#[test]
fn a_stopped_run_is_saved_and_resumes() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let uninterrupted = folders(folder.path(), "uninterrupted");
    run(&config(), &dataset, &uninterrupted).expect("the run finishes");

    let stopped = folders(folder.path(), "stopped");
    let stop = |when: &dyn Fn(&TrainingEvent<'_>) -> bool, completed_steps: u64| {
        let model = config().model.init(&Device::flex().autodiff()).expect("a valid configuration");
        let training = Training::new(config(), stopped.clone());
        let outcome = training.run(model, &dataset, |event| {
            if when(&event) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match outcome {
            Ok(Outcome::Stopped { steps }) => assert_eq!(steps, completed_steps),
            other => panic!("{other:?}"),
        }
    };
    let after = |last: u64| {
        move |event: &TrainingEvent<'_>| match event {
            TrainingEvent::Step(step) => step.step == last,
            _ => false,
        }
    };
    stop(&|event| matches!(event, TrainingEvent::Planned(_)), 0);
    stop(&after(0), 1);
    stop(&after(4), 5); // the last step of an epoch
    stop(&after(9), 10); // followed by a validation
    for _ in 0..2 {
        stop(&|event| matches!(event, TrainingEvent::Validating { .. }), 10);
    }
    stop(&|event| matches!(event, TrainingEvent::Validated(_)), 10);
    // Settings that do not affect the weights may change on resume.
    let mut config = config();
    config.workers = 3;
    config.checkpoint_steps = 4;
    config.cache.views = CachedViews::IDENTITY;
    config.cache.limit_gb = Some(1.0);
    run(&config, &dataset, &stopped).expect("the run resumes and finishes");
    let written =
        TrainingConfig::released(9).with_overrides_from_file(stopped.run.join("config.toml"));
    assert_eq!(written.expect("a valid file"), config);
    for name in ["ladder.safetensors", "best.safetensors"] {
        assert_same_weights(&stopped, &uninterrupted, name);
    }
    for name in ["steps.csv", "validation.csv"] {
        assert!(bytes(&stopped, name) == bytes(&uninterrupted, name), "{name} differs");
    }
}

#[test]
fn a_run_folder_in_use_or_of_another_run_is_reported() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    let model = || config.model.init(&Device::flex().autodiff()).expect("a valid configuration");
    let training = Training::new(config.clone(), folders.clone());
    let mut second_started = false;
    let first = training.run(model(), &dataset, |event| {
        if let (TrainingEvent::Step(_), false) = (event, second_started) {
            second_started = true;
            let second = training.run(model(), &dataset, ignore_event);
            let message = second.expect_err("a folder in use").to_string();
            assert!(message.contains("another process is training in it"), "{message}");
        }
        ControlFlow::Continue(())
    });
    assert!(first.expect("the first run is not affected").finished().is_some());
    assert!(second_started);

    let mut other = config.clone();
    other.seed = 3;
    let message = run(&other, &dataset, &folders).expect_err("another run").to_string();
    let expected = "has `seed = 0`, but the current settings have `seed = 3`";
    assert!(message.contains(expected), "{message}");
    let mut upright = config.clone();
    upright.augmentation = Augmentation::Upright;
    let message = run(&upright, &dataset, &folders).expect_err("other views").to_string();
    assert!(message.contains("`augmentation = \"released\"`, but"), "{message}");
    let mut present = config.clone();
    present.dice_absent_classes = false;
    let message = run(&present, &dataset, &folders).expect_err("another loss").to_string();
    assert!(message.contains("`dice_absent_classes = true`, but"), "{message}");
}

#[test]
fn a_model_that_does_not_fit_is_reported_before_training() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let folders = folders(folder.path(), "run");
    let config = config();
    let mut wrong_classes = config.clone();
    wrong_classes.model.decoder.num_masks = 5;
    let message = run(&wrong_classes, &dataset, &folders).expect_err("five masks").to_string();
    assert!(message.contains("9 classes") && message.contains("5 masks"), "{message}");

    let without_autodiff = config.model.init(&Device::flex()).expect("a valid configuration");
    let training = Training::new(config.clone(), folders.clone());
    let result = training.run(without_autodiff, &dataset, ignore_event);
    assert!(matches!(result, Err(TrainingError::NoAutodiff)));
    let mut frozen = config;
    frozen.model.fusion = Fusion::Untrained;
    let result = run(&frozen, &dataset, &folders);
    assert!(matches!(result, Err(TrainingError::NothingTrains)));
}

#[test]
fn uncached_views_are_counted() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dataset = dataset(folder.path());
    let mut config = config();
    config.cache.views = CachedViews::IDENTITY;
    let finished = run(&config, &dataset, &folders(folder.path(), "run"));
    let (_, events) = finished.expect("the run finishes");
    let plan = events.plan();
    assert!(plan.cacheable_embeddings <= 18 && plan.uncached_embeddings > 18);
    assert_eq!(events.computed_embeddings(), plan.cacheable_embeddings + plan.uncached_embeddings);
    let mut side = config.clone();
    side.model.fusion = Fusion::SideOnly;
    let finished = run(&side, &dataset, &folders(folder.path(), "side"));
    let (_, events) = finished.expect("the run finishes");
    let plan = events.plan();
    assert_eq!((plan.time_per_embedding, plan.uncached_embeddings), (None, 0));
    assert!(events.steps.iter().all(|step| step.gate.is_none()));
}

/// The process that the next test kills.
#[test]
#[ignore = "started by a_killed_run_resumes_with_the_same_weights"]
fn process_of_a_killed_run() {
    let Some(folder) = process_argument() else {
        return;
    };
    // Adding the thread to the compute pool does not change a bit of the result.
    sam_lst::compute_on_current_thread();
    assert!(!sam_lst::compute_on_current_thread(), "possible once in a process");
    let folder = Path::new(&folder);
    run(&config(), &dataset(folder), &folders(folder, "killed")).expect("the run finishes");
}

#[test]
fn a_killed_run_resumes_with_the_same_weights() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let uninterrupted = folders(folder.path(), "uninterrupted");
    run(&config(), &dataset(folder.path()), &uninterrupted).expect("the run finishes");

    let killed = folders(folder.path(), "killed");
    let rows = || match std::fs::read_to_string(killed.run.join("steps.csv")) {
        Ok(text) => text.lines().count().saturating_sub(1),
        Err(_) => 0,
    };
    let start = || {
        test_process("training::process_of_a_killed_run", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("start the process")
    };
    let mut kills = 0;
    // Before a checkpoint, after one, within another epoch.
    for (min_rows, delay_ms) in [(1, 0), (4, 30), (8, 7), (11, 60)] {
        let mut process = start();
        while rows() < min_rows && process.try_wait().expect("child process").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(delay_ms));
        process.kill().expect("SIGKILL");
        kills += usize::from(!process.wait().expect("child process").success());
    }
    assert!(kills >= 2, "it was killed {kills} times");
    assert!(start().wait().expect("child process").success());
    for name in ["steps.csv", "validation.csv"] {
        assert!(bytes(&killed, name) == bytes(&uninterrupted, name), "{name} differs");
    }
    for name in ["ladder.safetensors", "best.safetensors"] {
        assert_same_weights(&killed, &uninterrupted, name);
    }
    let checkpoints = names_containing(&killed, &["checkpoint-"]);
    assert_eq!(checkpoints.len(), 1, "older checkpoints are removed: {checkpoints:?}");
}

#[test]
fn folders_that_only_look_like_checkpoints_are_left_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (config, dataset, folders) = one_epoch(folder.path());
    let model = || config.model.init(&Device::flex().autodiff()).expect("valid");
    let training = Training::new(config.clone(), folders.clone());
    training.run(model(), &dataset, stop_after_a_step).expect("stopped after a step");
    let mine = folders.run.join("checkpoint-mine");
    std::fs::create_dir(&mine).expect("a folder");
    let outcome = training.run(model(), &dataset, ignore_event).expect("resumed");
    assert!(outcome.finished().is_some() && mine.is_dir());
}
