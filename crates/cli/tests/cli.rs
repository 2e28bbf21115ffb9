//! The program `sam-lst` from the outside: help, refusals, and whole runs on small synthetic
//! phantoms.

use assert_cmd::Command;
use burn::tensor::Device;
use sam_lst::datasets::{Orientation, read_nifti_image, read_nifti_labels};
use sam_lst::model::EncoderConfig;
use sam_lst::{DatasetDescription, PhantomConfig, SamLstConfig, TrainingConfig, Volume};
use serde_json::Value;
use std::path::{Path, PathBuf};

const COMMANDS: [&str; 13] = [
    "inspect",
    "demo",
    "train",
    "compare",
    "embed",
    "segment",
    "evaluate",
    "prompt",
    "weights",
    "convert",
    "prepare",
    "devices",
    "completions",
];

fn sam_lst() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sam-lst"))
}

/// Runs the program in a folder, checks its exit status, and returns standard output and error.
fn run(folder: &Path, arguments: &[&str], status: i32) -> [String; 2] {
    let output = sam_lst().current_dir(folder).args(arguments).output().expect("starts");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert_eq!(output.status.code(), Some(status), "{arguments:?}\n{stdout}\n{stderr}");
    [stdout, stderr]
}

/// Runs the program with `--json` and parses its result.
fn run_json(folder: &Path, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let [stdout, _] = run(folder, &arguments, 0);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}\n{stdout}"))
}

/// Runs the program, which must fail with one line on standard error that contains all `parts`.
fn fails(folder: &Path, arguments: &[&str], parts: &[&str]) {
    fails_with(1, folder, arguments, parts);
}

/// As [`fails`], with an exit status.
fn fails_with(status: i32, folder: &Path, arguments: &[&str], parts: &[&str]) {
    let [stdout, stderr] = run(folder, arguments, status);
    assert_eq!(stdout, "", "{arguments:?}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{arguments:?}\n{stderr}");
    for part in parts {
        assert!(last.contains(part), "{arguments:?}: no `{part}` in\n{stderr}");
    }
}

/// A model and run of seconds.
fn tiny_config(epochs: u64) -> TrainingConfig {
    let mut config = TrainingConfig::demo(9);
    config.epochs = epochs;
    config.batch_size = 4;
    config.validation_epochs = 1;
    config.model.input_size = 64;
    config.optimization.schedule.warmup_steps = 4;
    config
}

/// A folder with `phantoms` (4 training and 2 test patients of six small slices), `tiny.toml`, and
/// `sam.safetensors`, a foundation for it.
fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_phantoms(&folder.path().join("phantoms"));
    let config = tiny_config(1);
    std::fs::write(folder.path().join("tiny.toml"), config.to_toml()).expect("writes");
    let device = sam_lst::devices::open("cpu").expect("the CPU");
    let model = config.model.init(&device).expect("valid");
    model.save_sam(folder.path().join("sam.safetensors")).expect("writes");
    folder
}

/// Smaller phantoms than the demo's own, in their place.
fn write_demo_phantoms(folder: &Path) {
    let phantoms = folder.join("runs/cache/phantoms");
    write_phantoms(&phantoms);
    std::fs::write(phantoms.join("complete-3"), "").expect("writes");
}

fn write_phantoms(root: &Path) {
    let phantoms = PhantomConfig {
        shape: [6, 40, 44],
        spacing_mm: [30.0, 9.0, 8.5],
        ..PhantomConfig::small(8)
    };
    phantoms.write_dataset(root, 4, 2, |_| {}).expect("writes");
}

/// Writes the tensors by which a SAM ViT-B is recognised, and no others.
fn write_vit_b_names(file: &Path) {
    use safetensors::tensor::{Dtype, TensorView};
    let values = vec![0_u8; 768 * 4];
    let tensor = |shape: &[usize]| {
        TensorView::new(Dtype::F32, shape.to_vec(), &values).expect("as many values as the shape")
    };
    let mut tensors = vec![("image_encoder.pos_embed".to_owned(), tensor(&[1, 1, 1, 768]))];
    for block in 0..12 {
        let name = format!("image_encoder.blocks.{block}.norm1.weight");
        tensors.push((name, tensor(&[768])));
    }
    safetensors::serialize_to_file(tensors, None, file).expect("writes");
}

#[test]
fn help_fits_on_a_screen_and_ends_with_examples() {
    let folder = tempfile::tempdir().expect("a folder");
    for command in COMMANDS {
        let [help, _] = run(folder.path(), &[command, "--help"], 0);
        let example = format!("Examples:\n  sam-lst {command}");
        assert!(help.rsplit("\n\n").next().unwrap_or_default().starts_with(&example), "{help}");
        assert!(help.lines().count() <= 40, "{command}: {} lines", help.lines().count());
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        let [short, _] = run(folder.path(), &[command, "-h"], 0);
        assert_eq!(help, short);
    }
    let [help, _] = run(folder.path(), &["--help"], 0);
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let wrong: [&[&str]; 14] = [
        &[],
        &["frobnicate"],
        &["train"],
        &["train", "--data", "d", "--sam", "s", "--validation", "1.5"],
        &["compare", "--data", "d"],
        &["compare", "--data", "d", "--methods", "unet,u-net"],
        &["compare", "--data", "d", "--methods", "unet", "--minutes", "1", "--epochs", "1"],
        &["embed", "--data", "d", "--sam", "s", "--shard", "4/4"],
        &["embed", "--data", "d", "--sam", "s", "--cache-views", "some"],
        &["segment", "a.nii", "b.nii", "--sam", "s"],
        &["evaluate"],
        &["evaluate", "--pred", "p", "--label", "l", "--data", "d", "--sam", "s", "--network", "l"],
        &["evaluate", "--data", "d", "--label", "l", "--sam", "s", "--network", "l"],
        &["demo", "--epochs", "0"],
    ];
    for arguments in wrong {
        let [stdout, stderr] = run(folder.path(), arguments, 2);
        assert!(stdout.is_empty() && stderr.contains("help"), "{arguments:?}\n{stderr}");
    }
}

#[test]
fn devices_and_completions_are_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let devices = run_json(folder.path(), &["devices"]);
    assert_eq!(devices[0]["name"], "cpu");
    let [text, _] = run(folder.path(), &["devices"], 0);
    assert!(text.starts_with("cpu "), "{text}");
    let [script, _] = run(folder.path(), &["completions", "bash"], 0);
    assert!(script.contains("sam-lst") && script.contains("--overlays"));
}

/// Segments the cases of a split, a folder and a list, and scores the labels of the cases.
fn segment_many(at: &Path, model: &[&str]) {
    let test = [&["segment", "phantoms", "many", "--cases", "test"], model].concat();
    let [text, _] = run(at, &test, 0);
    assert!(text.contains("2 label files") && text.contains("many/volumes.csv"), "{text}");
    assert_eq!(names(&at.join("many")), ["0001.nii.gz", "0002.nii.gz", "volumes.csv"]);
    fails(at, &test, &["many/0001.nii.gz", "--force"]);
    let volumes = std::fs::read_to_string(at.join("many/volumes.csv")).expect("readable");
    assert_eq!(volumes.lines().count(), 1 + 2 * 8, "{volumes}");
    assert!(volumes.starts_with("image,organ,label,voxels,volume_ml\n0001,aorta,8,"), "{volumes}");
    // The same labels as of one image.
    assert_eq!(classes(&at.join("many/0001.nii.gz")), classes(&at.join("pred/img0001.nii.gz")));
    let cases = ["evaluate", "--pred", "many", "--data", "phantoms", "--dataset", "synapse"];
    let scored = run_json(at, &cases);
    let evaluated = run_json(at, &[&["evaluate", "--data", "phantoms"], model].concat());
    let scores = |report: &Value| report["reports"][1]["mean_of_organs"].clone();
    assert_eq!(scores(&scored), scores(&evaluated));

    let images = at.join("phantoms/RawData/Training/img");
    std::fs::write(at.join("broken.nii.gz"), "no NIfTI file").expect("writes");
    let image = images.join("img0002.nii.gz");
    std::fs::write(at.join("list.txt"), format!("{}\nbroken.nii.gz\n", image.display()))
        .expect("writes");
    let list = [&["segment", "list.txt", "listed"], model].concat();
    // One broken image does not keep the others from being segmented.
    let [text, stderr] = run(at, &list, 1);
    assert!(text.contains("1 label file "), "{text}");
    assert!(stderr.contains("cannot read") && stderr.contains("broken.nii.gz"), "{stderr}");
    assert!(stderr.contains("1 of 2 images could not be segmented"), "{stderr}");
    assert_eq!(names(&at.join("listed")), ["img0002.nii.gz", "volumes.csv"]);

    let folder = ["segment", "phantoms/RawData/Training/img", "listed", "--skip-existing"];
    let count = std::fs::read_dir(&images).expect("images").count();
    let result = run_json(at, &[&folder[..], model].concat());
    assert_eq!(result["images"].as_array().map(Vec::len), Some(count - 1));
    let volumes = std::fs::read_to_string(at.join("listed/volumes.csv")).expect("readable");
    assert_eq!(volumes.lines().count(), 1 + 8 * count, "{volumes}");
    std::fs::write(at.join("list.txt"), "missing.nii\n").expect("writes");
    fails(at, &list, &["missing.nii", "list.txt"]);
    std::fs::create_dir(at.join("nothing")).expect("a folder");
    let empty = [&["segment", "nothing", "out"], model].concat();
    fails_with(2, at, &empty, &["nothing has no image"]);
}

/// Stops the segmentation of a folder and continues it.
#[cfg(unix)]
fn segment_interrupted(at: &Path, model: &[&str]) {
    let images = at.join("twenty");
    std::fs::create_dir(&images).expect("a folder");
    let image = at.join("phantoms/RawData/Training/img/img0001.nii.gz");
    for i in 0..20 {
        std::fs::copy(&image, images.join(format!("{i:02}.nii.gz"))).expect("copies");
    }
    let segment = [&["segment", "twenty", "stopped", "--skip-existing"], model].concat();
    let table = at.join("stopped/volumes.csv");
    let rows = || std::fs::read_to_string(&table).unwrap_or_default().lines().count();
    let output = interrupted(at, &segment, || rows() > 1);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    // Whole files, each with its rows, and nothing else.
    let files = names(&at.join("stopped"));
    let written = files.iter().filter(|name| name.ends_with(".nii.gz")).count();
    assert!((1..20).contains(&written), "{files:?}");
    assert_eq!((rows(), files.len()), (1 + 8 * written, written + 1), "{files:?}");
    let [text, _] = run(at, &segment, 0);
    assert!(text.contains(&format!("{} label file", 20 - written)), "{text}");
    assert_eq!((rows(), names(&at.join("stopped")).len()), (1 + 8 * 20, 21));
    let expected = classes(&at.join("pred/img0001.nii.gz"));
    for i in 0..20 {
        assert_eq!(classes(&at.join(format!("stopped/{i:02}.nii.gz"))), expected);
    }
}

/// Starts the program, sends Ctrl-C when `is_ready`, and waits for its end.
#[cfg(unix)]
fn interrupted(
    folder: &Path,
    arguments: &[&str],
    is_ready: impl Fn() -> bool,
) -> std::process::Output {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let mut program = Command::new(env!("CARGO_BIN_EXE_sam-lst"));
    program.current_dir(folder).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = program.spawn().expect("starts");
    let started = Instant::now();
    while !is_ready() {
        assert!(started.elapsed() < Duration::from_secs(60), "not ready: {arguments:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("starts").success());
    child.wait_with_output().expect("ends")
}

/// The classes of a file with Synapse's labels.
fn classes(file: &Path) -> Volume<u8> {
    let map = DatasetDescription::synapse().label_map();
    read_nifti_labels(file, Orientation::Stored, &map).expect("labels")
}

#[test]
fn unusable_paths_are_reported_before_anything_is_read() {
    let folder = project();
    let at = folder.path();
    for name in ["ct.nii.gz", "slice.png", "s.pth", "l.safetensors"] {
        std::fs::write(at.join(name), "not what its name says").expect("writes");
    }
    let model = ["--sam", "s.pth", "--network", "l.safetensors"];
    let arguments = |input, output, more: &[&'static str]| {
        [&["segment", input, output], &model[..], more].concat()
    };
    let segment = |input, output, more: &[&'static str], parts: &[&str]| {
        fails(at, &arguments(input, output, more), parts);
    };
    let wrong_name = arguments("ct.nii.gz", "organs.nrrd", &[]);
    fails_with(2, at, &wrong_name, &["organs.nrrd", ".nii or .nii.gz"]);
    segment("missing.nii.gz", "organs.nii.gz", &[], &["cannot read missing.nii.gz"]);
    segment("ct.nii.gz", "./ct.nii.gz", &["--force"], &["it is also ct.nii.gz"]);
    segment("ct.nii.gz", "s.pth/organs.nii", &[], &["cannot write", "s.pth"]);
    let no_device = arguments("ct.nii.gz", "o.nii", &["--device", "gpu"]);
    fails_with(2, at, &no_device, &["unknown device `gpu`", "sam-lst devices"]);
    segment("ct.nii.gz", "o.nii", &["--overlays", "phantoms"], &["phantoms", "--force"]);
    let beside = ["--overlays", ".", "--force"];
    let pictures = arguments("ct.nii.gz", "new/o.nii", &beside);
    fails_with(2, at, &pictures, &["cannot write pictures to .", "the folder of ct.nii.gz"]);
    segment("ct.nii.gz", "o.nii", &[], &["l.safetensors"]);
    assert!(!at.join("o.nii").exists());

    fails(at, &["convert", "missing.pth", "a.safetensors"], &["missing.pth"]);
    fails_with(2, at, &["convert", "s.pth", "a.pth"], &["a.pth", ".safetensors"]);
    let existing = &["convert", "s.pth", "sam.safetensors"];
    fails(at, existing, &["sam.safetensors", "it exists", "--force"]);
    let same = &["convert", "sam.safetensors", "phantoms/../sam.safetensors", "--force"];
    fails(at, same, &["it is also"]);

    fails(at, &["train", "--data", "missing", "--sam", "s.pth"], &["cannot read missing"]);
    let train = ["train", "--data", "phantoms", "--sam"];
    fails(at, &[&train[..], &["no.pth"]].concat(), &["no.pth"]);
    let official = [&train[..], &["sam_vit_b_01ec64.pth"]].concat();
    fails(at, &official, &["sam_vit_b_01ec64.pth", "https://"]);
    fails(at, &[&train[..], &["s.pth", "--run", "phantoms"]].concat(), &["it is also phantoms"]);
    assert!(!at.join("runs").exists());

    fails(at, &["evaluate", "--pred", "none", "--label", "phantoms"], &["cannot read none"]);
    for prefix in ["new/", "phantoms"] {
        let scores = ["evaluate", "--pred", "phantoms", "--label", "phantoms", "--output", prefix];
        fails_with(2, at, &scores, &[prefix, "it is a folder"]);
    }
    let image = ["prompt", "slice.png", "new/mask.png", "--sam", "s.pth"];
    fails_with(2, at, &image, &["no prompt"]);
    let with = |prompt: [&'static str; 2]| [&image[..], &prompt].concat();
    fails_with(2, at, &with(["--box", "1,2,0,3,4,0"]), &["slices are for volumes"]);
    let volume = ["prompt", "ct.nii.gz", "new/mask.nii", "--sam", "s.pth"];
    let with = |prompt: [&'static str; 2]| [&volume[..], &prompt].concat();
    fails_with(2, at, &with(["--box", "1,2,3,4"]), &["X0,Y0,Z0,X1,Y1,Z1"]);
    fails_with(2, at, &with(["--point", "1,2,+"]), &["takes no --point"]);
    let picture = [&with(["--box", "1,2,0,3,4,0"])[..], &["--overlay", "new/p.png"]].concat();
    fails_with(2, at, &picture, &["names a folder", "new/p.png"]);
    let folder = ["prompt", "phantoms", "new/mask.png", "--sam", "s.pth", "--box", "1,2,3,4"];
    fails_with(2, at, &folder, &["phantoms", "it is a folder"]);
    let twice = [&image[..], &["--box", "1,2,3,4", "--overlay", "a/../new/mask.png"]].concat();
    fails(at, &twice, &["it is also new/mask.png"]);
    assert!(!at.join("new").exists() && !at.join("a").exists());
    fails(at, &["prepare", "phantoms", "phantoms", "--force"], &["cannot write", "phantoms"]);
    fails(at, &["prepare", "phantoms", ".", "--force"], &["cannot write", "of the dataset"]);
}

#[test]
fn labels_that_the_description_lacks_are_reported_before_training() {
    let folder = project();
    let at = folder.path();
    let mut description = DatasetDescription::synapse();
    description.ignored_labels = Default::default();
    std::fs::write(at.join("incomplete.toml"), description.to_toml()).expect("writes");
    write_vit_b_names(&at.join("s.st"));
    let train = ["train", "--data", "phantoms", "--dataset", "incomplete.toml", "--sam", "s.st"];
    fails(at, &train, &["label0001.nii.gz", "is not in the dataset description"]);
    description.ignored_labels = DatasetDescription::synapse().ignored_labels;
    description.split.train = vec!["none".to_owned()];
    std::fs::write(at.join("empty.toml"), description.to_toml()).expect("writes");
    let empty = ["train", "--data", "phantoms", "--dataset", "empty.toml", "--sam", "s.st"];
    fails(at, &empty, &["cannot use the training split of phantoms: it is empty"]);
    description.split.partial = false;
    std::fs::write(at.join("typo.toml"), description.to_toml()).expect("writes");
    let typo = ["train", "--data", "phantoms", "--dataset", "typo.toml", "--sam", "s.st"];
    fails(at, &typo, &["`split.train` names case none", "has only the cases 0001, "]);
    std::fs::write(at.join("broken.toml"), "name = ").expect("writes");
    let broken = ["train", "--data", "phantoms", "--dataset", "broken.toml", "--sam", "s.st"];
    fails(at, &broken, &["cannot read broken.toml: TOML parse error at line 1"]);
}

#[test]
fn a_dataset_is_prepared() {
    let folder = project();
    let [text, _] = run(folder.path(), &["prepare", "phantoms", "prepared"], 0);
    assert_eq!(text, "prepared: 4 training cases with 24 slices, 2 test cases\n");
    assert!(folder.path().join("prepared/test_vol_h5/case0001.npy.h5").is_file());
    assert_eq!(names(&folder.path().join("prepared")), ["lists", "test_vol_h5", "train_npz"]);
    fails(folder.path(), &["prepare", "phantoms", "prepared"], &["not empty", "--force"]);
    run(folder.path(), &["prepare", "phantoms", "prepared", "--force"], 0);
}

#[test]
fn a_model_is_trained_and_evaluated() {
    let folder = project();
    let at = folder.path();
    let shared = ["--data", "phantoms", "--validation", "0.25", "--config", "tiny.toml"];
    let shared = [&shared[..], &["--sam", "sam.safetensors"]].concat();
    let shards = ["0/2", "1/2"].map(|shard| {
        let embedded = run_json(at, &[&["embed", "--shard", shard], &shared[..]].concat());
        embedded["computed_embeddings"].as_u64().expect("a count")
    });
    // One epoch sees each of the three patients' six slices once.
    assert_eq!(shards[0] + shards[1], 18);
    let train = [&["train"], &shared[..]].concat();
    let trained = run_json(at, &train);
    assert_eq!((&trained["split"], &trained["cases"]), (&"test".into(), &2.into()));
    assert_eq!(trained["reports"].as_array().map(Vec::len), Some(2));
    let ladder = trained["network"].as_str().expect("a path");
    assert_eq!(ladder, "runs/synapse/best.safetensors");
    let [text, stderr] = run(at, &train, 0);
    assert!(text.contains("pancreas") && text.contains(ladder), "{text}");
    assert!(stderr.contains("5 steps in 1 epoch,"), "{stderr}");

    let image = "phantoms/RawData/Training/img/img0001.nii.gz";
    let model = ["--sam", "sam.safetensors", "--network", ladder];
    let segment = [&["segment", image, "pred/img0001.nii.gz"], &model[..]].concat();
    let segment = [&segment[..], &["--overlays", "pictures", "--cache", "runs/cache"]].concat();
    let segmented = run_json(at, &segment);
    assert_eq!(segmented["organs"].as_array().map(Vec::len), Some(8));
    assert_eq!(names(&at.join("pred")), ["img0001.nii.gz"]);
    let pictures = names(&at.join("pictures")).len();
    assert_eq!(segmented["overlays"]["pictures"], pictures);
    fails(at, &segment, &["pred/img0001.nii.gz", "--force"]);
    for stale in ["slice999.png", "slices.png"] {
        std::fs::write(at.join("pictures").join(stale), "").expect("writes");
    }
    let [text, _] = run(at, &[&segment[..], &["--force"]].concat(), 0);
    assert_eq!(names(&at.join("pictures")).len(), pictures + 1);
    assert!(at.join("pictures/slices.png").exists());
    assert!(text.contains(" ml\n") && text.contains("pred/img0001.nii.gz"), "{text}");
    std::fs::write(at.join("one.toml"), one_organ().to_toml()).expect("writes");
    let other = [&segment[..], &["--force", "--dataset", "one.toml"]].concat();
    fails(at, &other, &["9 masks", "2 classes"]);

    let labels = "phantoms/RawData/Training/label";
    let folders = ["evaluate", "--pred", "pred", "--label", labels];
    // Without a description, labels have their numbers as names.
    let [text, _] = run(at, &folders, 0);
    assert!(text.contains("label 11") && !text.contains("pancreas"), "{text}");
    let folders = [&folders[..], &["--dataset", "synapse", "--output", "scores/mine"]].concat();
    let [text, stderr] = run(at, &folders, 0);
    assert!(text.contains("1 case;") && text.contains("scores/mine-strict.json"), "{text}");
    assert!(stderr.contains("5 label files or cases are not scored"), "{stderr}");
    assert!(stderr.contains("img0001.nii.gz with label0001.nii.gz"), "{stderr}");
    assert!(stderr.contains("ground truth has 0") && stderr.contains("11 pancreas"), "{stderr}");
    assert!(text.contains(&format!("pred compared with {labels}; 1 case;")), "{text}");
    assert_eq!(names(&at.join("scores")).len(), 7);
    let page = std::fs::read_to_string(at.join("scores/mine.html")).expect("a page");
    assert!(page.contains("Scores of predictions") && page.contains("pancreas"), "{page}");
    fails(at, &folders, &["scores/mine-reference.csv", "--force"]);
    let cases = [&["evaluate", "--data", "phantoms", "--protocol", "strict"], &model[..]].concat();
    let evaluated = run_json(at, &cases);
    let reports = evaluated["reports"].as_array().expect("reports");
    assert_eq!((reports.len(), reports[0]["cases"].as_array().map(Vec::len)), (1, Some(2)));
    assert_eq!(reports[0]["subject"], "test cases of synapse");

    segment_many(at, &model);
    #[cfg(unix)]
    segment_interrupted(at, &model);

    // Without a ladder, the decoder has SAM's size.
    let EncoderConfig::Vit(encoder) = tiny_config(1).model.encoder else { panic!("SAM's ViT") };
    let encoder = EncoderConfig::Vit(encoder.with_out_channels(256));
    let model = SamLstConfig::for_encoder(encoder, 9).init(&Device::flex()).expect("valid");
    model.save_sam(at.join("alone.safetensors")).expect("writes");
    let untrained = ["evaluate", "--data", "phantoms", "--sam", "alone.safetensors"];
    let [text, stderr] = run(at, &untrained, 0);
    assert!(text.contains("2 cases;") && text.contains("pancreas"), "{text}");
    assert!(
        stderr.contains("without --network") && stderr.contains("without training"),
        "{stderr}"
    );
    let variant = [&untrained[..], &["--variant", "med-sam"]].concat();
    fails(at, &variant, &["alone.safetensors", "--variant says"]);
}

#[test]
fn a_folder_is_inspected_and_trained_on_without_a_description_or_a_checkpoint() {
    let folder = project();
    let at = folder.path();
    for (kind, to) in [("img", "images"), ("label", "masks")] {
        std::fs::create_dir_all(at.join("mine").join(to)).expect("a folder");
        for case in ["0001", "0002", "0005", "0006"] {
            let from = format!("phantoms/RawData/Training/{kind}/{kind}{case}.nii.gz");
            let to = format!("mine/{to}/patient{case}.nii.gz");
            std::fs::copy(at.join(from), at.join(to)).expect("copies");
        }
    }
    let [text, _] = run(at, &["inspect", "mine"], 0);
    for part in [
        "a folder of images and a folder of labels",
        "4: patient0001,",
        "stored as LAS in 4; read as LPS",
        "6 without a name in 4 of 4 cases",
        "chosen at random for testing",
        "mine.toml",
        "mine.png",
        "sam-lst train --data mine --dataset mine.toml --foundation demo --run runs/try",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let described = DatasetDescription::from_file(at.join("mine.toml")).expect("a description");
    let numbers: Vec<u16> = described.organs.iter().map(|organ| organ.labels[0]).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13]);
    fails(at, &["inspect", "mine"], &["mine.toml: it exists; --force"]);
    let inspected = run_json(at, &["inspect", "mine", "--force"]);
    assert_eq!(inspected["cases"].as_array().map(Vec::len), Some(4));

    let small = "epochs = 1\nbatch_size = 4\nmodel.input_size = 64\n";
    std::fs::write(at.join("small.toml"), small).expect("writes");
    let without = ["train", "--data", "mine", "--foundation", "demo", "--config", "small.toml"];
    let trained = run_json(at, &without);
    assert_eq!(trained["foundation"], "runs/mine/foundation.safetensors");
    assert_eq!((&trained["split"], &trained["cases"]), (&"test".into(), &1.into()));
    let image = "mine/images/patient0001.nii.gz";
    let ladder = trained["network"].as_str().expect("a path");
    let segment = ["segment", image, "out.nii.gz", "--network", ladder, "--sam"];
    run(at, &[&segment[..], &["runs/mine/foundation.safetensors"]].concat(), 0);
    std::fs::create_dir(at.join("empty")).expect("a folder");
    fails(
        at,
        &["train", "--data", "empty", "--foundation", "demo"],
        &["cannot recognise the dataset in empty", "it has no image"],
    );
}

/// A description of two organs.
const TWO_ORGANS: &str = r#"
name = "two"
intensity = { window = [-125.0, 275.0] }
layout = { files = { images = "{case}.nii.gz", labels = "labels/{case}.nii.gz" } }
organs = [{ name = "a", labels = [1] }, { name = "b", labels = [2] }]
"#;

/// Networks over the same foundation are averaged, and their uncertainty is written.
fn segment_with_several(at: &Path, image: &str) {
    let of = |method: &str| format!("runs/{method}/sam-tuning.safetensors");
    let members = ["decoder", "prompts"].map(of);
    let ensemble =
        ["--sam", "alone.safetensors", "--network", &members[0], "--network", &members[1]];
    let segment = ["segment", image, "both.nii.gz", "--uncertainty", "uncertainty.nii.gz"];
    run(at, &[&segment[..], &ensemble, &["--poses", "1"]].concat(), 0);
    let (labels, map) = (at.join("both.nii.gz"), at.join("uncertainty.nii.gz"));
    let map = read_nifti_image(map, Orientation::Stored).expect("a map");
    let map = map.voxels().iter().copied().collect::<Vec<f32>>();
    assert_eq!(map.len(), classes(&labels).voxels().len());
    assert!(map.iter().all(|value| (0.0..=1.0).contains(value)));
    assert!(map.iter().any(|value| *value > 0.1) && map.iter().any(|value| *value != map[0]));
    fails(at, &[&segment[..], &ensemble].concat(), &["both.nii.gz", "--force"]);
    let evaluate = ["evaluate", "--data", "phantoms", "--uncertainty"];
    let evaluated = run_json(at, &[&evaluate[..], &ensemble].concat());
    let area = evaluated["uncertainty_auroc"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&area), "{area}");
    let (decoder, unet) = (&members[0], "runs/unet-ladder/unet-ladder.safetensors");
    let unlike = ["segment", image, "c.nii.gz", "--network", decoder, "--network", unet];
    let parts = ["cannot combine", "orientation, intensities, sizes or precision"];
    fails(at, &[&unlike[..], &["--sam", "alone.safetensors"]].concat(), &parts);
}

#[test]
fn each_method_trains_and_its_network_segments() {
    let folder = project();
    let at = folder.path();
    // The decoder of a model without a ladder has SAM's size.
    let EncoderConfig::Vit(encoder) = tiny_config(1).model.encoder else { panic!("SAM's ViT") };
    let encoder = EncoderConfig::Vit(encoder.with_out_channels(256));
    let model = SamLstConfig::for_encoder(encoder, 9).init(&Device::flex()).expect("valid");
    model.save_sam(at.join("alone.safetensors")).expect("writes");
    let small = "epochs = 1\nbatch_size = 8\nmodel.input_size = 64\n";
    std::fs::write(at.join("small.toml"), small).expect("writes");
    let image = "phantoms/RawData/Training/img/img0001.nii.gz";
    let methods = [
        "true-ladder",
        "unet-ladder",
        "fast-unet-ladder",
        "decoder",
        "prompts",
        "lora",
        "late-lora",
        "adapter",
        "sam-adapter",
        "bias",
        "full",
        "unet",
    ];
    for method in methods {
        let run_folder = format!("runs/{method}");
        let sam: &[&str] = if method == "unet" { &[] } else { &["--sam", "alone.safetensors"] };
        let train = ["train", "--data", "phantoms", "--method", method, "--config", "small.toml"];
        let trained = run_json(at, &[&train[..], &["--run", &run_folder], sam].concat());
        let name = match method {
            "true-ladder" => "ladder",
            "unet-ladder" | "unet" => method,
            "fast-unet-ladder" => "unet-ladder",
            _ => "sam-tuning",
        };
        assert_eq!(trained["method"], name, "{method}");
        let network = trained["network"].as_str().expect("a path");
        assert_eq!(network, format!("{run_folder}/{name}.safetensors"));
        let output = format!("{method}.nii.gz");
        let segment = ["segment", image, &output, "--network", network];
        run(at, &[&segment[..], sam].concat(), 0);
        let evaluate = ["evaluate", "--data", "phantoms", "--network", network];
        let evaluated = run_json(at, &[&evaluate[..], sam].concat());
        assert_eq!(evaluated["reports"].as_array().map(Vec::len), Some(2));
    }
    segment_with_several(at, image);
    let lora = "runs/lora/sam-tuning.safetensors";
    let segment = ["segment", image, "again.nii.gz", "--network"];
    fails(at, &[&segment[..], &[lora]].concat(), &["`sam-tuning` needs", "--sam FILE"]);
    let with_sam = ["runs/unet/unet.safetensors", "--sam", "alone.safetensors"];
    fails(at, &[&segment[..], &with_sam].concat(), &["`unet`, which has no foundation"]);
    let other = [lora, "--sam", "sam.safetensors"];
    fails(at, &[&segment[..], &other].concat(), &["sam.safetensors"]);
    let half = ["runs/unet/unet.safetensors", "--precision", "f16"];
    let [_, stderr] = run(at, &[&segment[..], &half].concat(), 2);
    assert!(stderr.contains("--precision is that of the foundation"), "{stderr}");
    // To SAMed's format and back. Its files do not name organs.
    let to_samed = ["convert", lora, "samed.safetensors", "--samed", "--sam", "alone.safetensors"];
    run(at, &to_samed, 0);
    let names = ["convert", "samed.safetensors", "back.safetensors", "--samed", "--sam"];
    run(at, &[&names[..], &["alone.safetensors"]].concat(), 0);
    let back = ["segment", image, "back.nii.gz", "--sam", "alone.safetensors", "--network"];
    run(at, &[&back[..], &["back.safetensors"]].concat(), 0);
    // A network without a foundation may be averaged with one that has it.
    let with_unet = ["--network", "runs/unet/unet.safetensors", "--sam", "alone.safetensors"];
    let mixed =
        ["segment", image, "mixed.nii.gz", "--network", "runs/decoder/sam-tuning.safetensors"];
    run(at, &[&mixed[..], &with_unet].concat(), 0);
    std::fs::write(at.join("two.toml"), TWO_ORGANS).expect("writes");
    let described = ["alone.safetensors", "--dataset", "two.toml", "--force"];
    fails(at, &[&names[..], &described].concat(), &["9 classes", "two.toml has 3", "--dataset"]);
    let mixed = ["--method", "unet", "--run", "runs/x", "--config", "runs/lora/config.toml"];
    let mixed = [&["train", "--data", "phantoms"], &mixed[..]].concat();
    fails(at, &mixed, &["settings of the method `sam-tuning`, but the method is `unet`"]);
    let other_run = ["--method", "unet", "--run", "runs/lora", "--config", "small.toml"];
    let other_run = [&["train", "--data", "phantoms"], &other_run[..]].concat();
    fails(at, &other_run, &["runs/lora/config.toml has `method = \"sam-tuning\"`"]);
}

#[test]
fn networks_without_a_foundation_are_trained_and_segment() {
    let folder = project();
    let at = folder.path();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/fixtures");
    let timm = |name: &str| fixtures.join(name).join("timm.safetensors").display().to_string();
    let (hybrid, swin) = (timm("trans_unet"), timm("swin_unet"));
    let small = "epochs = 1\nbatch_size = 8\nmodel.input_size = 64\n";
    let trans_unet = "[model.network]\nembed_dim = 16\nnum_heads = 2\nneck_channels = 8\n\
        decoder_channels = [8, 8, 8, 4]\nresnet = { blocks = [1, 2, 1], width = 8, groups = 4 }\n";
    let with_transformer = format!("{trans_unet}depth = 2\n");
    let attention_unet = "model.network.channels = [4, 6, 8]\n";
    let swin_unet = "[model.network.encoder]\nembed_dim = 8\ndepths = [2, 2]\nnum_heads = [2, 4]\n\
        window_size = 5\n";
    let image = "phantoms/RawData/Training/img/img0001.nii.gz";
    for (method, name, settings, pretrained) in [
        ("attention-unet", "attention-unet", attention_unet, None),
        ("trans-unet", "trans-unet", &with_transformer, Some(&hybrid)),
        ("r50-vit", "trans-unet", &with_transformer, None),
        ("r50-unet", "trans-unet", trans_unet, Some(&hybrid)),
        ("r50-attention-unet", "trans-unet", trans_unet, None),
        ("swin-unet", "swin-unet", swin_unet, Some(&swin)),
    ] {
        std::fs::write(at.join("small.toml"), format!("{small}{settings}")).expect("writes");
        let run_folder = format!("runs/{method}");
        let train = ["train", "--data", "phantoms", "--method", method, "--config", "small.toml"];
        let encoder = pretrained.map(|file| ["--pretrained", file.as_str()]);
        let encoder = encoder.as_ref().map_or(&[][..], |options| &options[..]);
        let trained = run_json(at, &[&train[..], &["--run", &run_folder], encoder].concat());
        assert_eq!(trained["method"], name, "{method}");
        let network = trained["network"].as_str().expect("a path");
        assert_eq!(network, format!("{run_folder}/{name}.safetensors"));
        run(at, &["segment", image, &format!("{method}.nii.gz"), "--network", network], 0);
    }
    let random = ["train", "--data", "phantoms", "--method", "swin-unet", "--config", "small.toml"];
    let random = [&random[..], &["--run", "runs/swin-unet"]].concat();
    fails(at, &random, &["runs/swin-unet/pretrained.sha256", "none"]);
    let wrong = ["--method", "swin-unet", "--config", "small.toml", "--pretrained", &hybrid];
    let wrong = [&["train", "--data", "phantoms", "--run", "runs/wrong"], &wrong[..]].concat();
    fails(at, &wrong, &["trans_unet/timm.safetensors", "patch_embed.proj.weight has shape"]);
}

#[test]
fn a_ladder_is_trained_with_another_side_network() {
    let folder = project();
    let at = folder.path();
    let small = "epochs = 1\nbatch_size = 8\nmodel.input_size = 64\n";
    std::fs::write(at.join("small.toml"), small).expect("writes");
    let train = ["train", "--data", "phantoms", "--foundation", "demo", "--config", "small.toml"];
    let trained = run_json(at, &[&train[..], &["--side", "resnet34", "--run", "r34"]].concat());
    assert_eq!(trained["network"], "r34/ladder.safetensors");
    let config = std::fs::read_to_string(at.join("r34/config.toml")).expect("settings");
    assert!(config.contains("ResNet.blocks = [") || config.contains("blocks = ["), "{config}");
    let swin = format!(
        "{small}[model.side.Swin]\nembed_dim = 6\ndepths = [1, 1, 1]\n\
        num_heads = [1, 2, 2]\nwindow_size = 4\n"
    );
    std::fs::write(at.join("swin.toml"), swin).expect("writes");
    let with_swin =
        ["train", "--data", "phantoms", "--foundation", "demo", "--config", "swin.toml"];
    run_json(at, &[&with_swin[..], &["--side", "swin-tiny", "--run", "swin"]].concat());
    let [_, stderr] = run(at, &[&with_swin[..], &["--side", "vit-tiny", "--run", "v"]].concat(), 2);
    assert!(stderr.contains("another kind of side network than --side"), "{stderr}");
    let image = "phantoms/RawData/Training/img/img0001.nii.gz";
    let segment = ["segment", image, "organs.nii.gz", "--sam", "r34/foundation.safetensors"];
    run(at, &[&segment[..], &["--network", "r34/ladder.safetensors"]].concat(), 0);
}

#[test]
fn options_that_do_not_fit_a_method_are_wrong_usage() {
    let folder = project();
    let train = ["train", "--data", "phantoms", "--method"];
    for (arguments, message) in [
        (&["unet", "--sam", "sam.safetensors"][..], "unet has no foundation; remove --sam"),
        (&["unet", "--cache-views", "all"], "remove --cache-views"),
        (&["unet", "--precision", "f16"], "remove --precision"),
        (&["unet", "--fusion", "gated"], "remove --fusion"),
        (&["swin-unet", "--side", "resnet50"], "swin-unet has no side network; remove --side"),
        (&["attention-unet", "--pretrained", "sam.safetensors"], "remove --pretrained"),
        (&["lora"], "the method lora needs the checkpoint that it fine-tunes"),
        (&["bias", "--foundation", "demo"], "the method bias needs the checkpoint"),
        (&["adapter", "--sam", "sam.safetensors", "--fusion", "gated"], "remove --fusion"),
        (&["ladder"], "no foundation: give --sam FILE"),
        (
            &["ladder", "--foundation", "demo", "--preset", "paper"],
            "--foundation demo has settings of its own; remove --preset",
        ),
        (
            &["ladder", "--foundation", "demo", "--fusion", "sam-only", "--side", "vit-tiny"],
            "--side",
        ),
    ] {
        let [stdout, stderr] = run(folder.path(), &[&train[..], arguments].concat(), 2);
        assert!(stdout.is_empty() && stderr.contains(message), "{arguments:?}\n{stderr}");
    }
}

#[test]
fn methods_are_compared_and_more_can_be_added() {
    let folder = project();
    let at = folder.path();
    let small = "epochs = 2\nbatch_size = 8\nmodel.input_size = 64\nvalidation_epochs = 1\n";
    std::fs::write(at.join("small.toml"), small).expect("writes");
    let one = "batch_size = 8\nmodel.input_size = 64\n";
    std::fs::write(at.join("tiny-epoch.toml"), one).expect("writes");
    std::fs::write(at.join("slow.toml"), "optimization.schedule.base = 1e-5\n").expect("writes");
    let compare = ["compare", "--data", "phantoms", "--config", "small.toml", "--run", "all"];
    let ladder = ["--foundation", "demo", "--methods"];
    let compare = [&compare[..], &ladder].concat();

    let first = run_json(at, &[&compare[..], &["unet", "--seeds", "1"]].concat());
    assert_eq!(first["runs"].as_array().map(Vec::len), Some(1));
    let network = std::fs::read(at.join("all/unet-0/unet.safetensors")).expect("a network");

    // More seeds and methods; what is there is not trained again.
    let same = "workers = 1\ncheckpoint_steps = 7\n"; // does not change the weights
    std::fs::write(at.join("same.toml"), same).expect("writes");
    let more = ["ladder,unet", "--seeds", "2", "--method-config", "ladder=slow.toml"];
    let more = [&more[..], &["--config", "same.toml"]].concat();
    let more = [&compare[..], &more].concat();
    let [table, stderr] = run(at, &more, 0);
    assert!(stderr.contains("run 3 of 4: ladder, seed 1"), "{stderr}");
    assert!(!stderr.contains("unet, seed 0"), "{stderr}");
    assert!(table.contains("DSC minus ladder's"), "{table}");
    assert!(table.contains(" ± "), "{table}");
    assert_eq!(std::fs::read(at.join("all/unet-0/unet.safetensors")).expect("kept"), network);
    let csv = std::fs::read_to_string(at.join("all/comparison.csv")).expect("a table");
    // Two methods, two seeds, two protocols, and eight organs with their mean.
    assert_eq!(csv.lines().count(), 1 + 2 * 2 * 2 * 9);
    let config = std::fs::read_to_string(at.join("all/ladder-1/config.toml")).expect("settings");
    assert!(config.contains("base = 0.00001") || config.contains("base = 1e-5"), "{config}");
    assert!(config.contains("\nseed = 1\n"), "{config}");
    let markdown = std::fs::read_to_string(at.join("all/comparison.md")).expect("a table");
    for part in ["protocol: reference", "protocol: strict", "| pancreas", "Costs:", "| unet "] {
        assert!(markdown.contains(part), "{part} is not in\n{markdown}");
    }
    assert!(at.join("all/comparison.html").is_file());
    let svg = std::fs::read_to_string(at.join("all/comparison.svg")).expect("a plot");
    assert!(svg.contains("<title>") && svg.contains("unet") && svg.contains("ladder"), "{svg}");
    let [_, again] = run(at, &more, 0);
    assert!(!again.contains("run "), "{again}");

    // Equal time: at least one epoch, by the time of one.
    let timed = ["--run", "timed", "--seeds", "1", "--minutes", "0.001", "--methods", "unet"];
    let timed = [&["compare", "--data", "phantoms", "--config", "tiny-epoch.toml"], &timed[..]];
    let timed = timed.concat();
    let [_, stderr] = run(at, &timed, 0);
    assert!(stderr.contains("timing an epoch of unet"), "{stderr}");
    assert!(stderr.contains("for an epoch, so 1 epoch, which takes longer"), "{stderr}");
    assert!(at.join("timed/comparison.svg").is_file());

    let other = [&compare[..5], &["--run", "all", "--methods", "unet", "--validation", "0.3"]];
    fails(at, &other.concat(), &["was begun with another description of the dataset"]);
    let twice = [&compare[..], &["unet,unet"]].concat();
    let lacking = [&compare[..], &["unet", "--method-config", "lora=small.toml"]].concat();
    let alone = ["compare", "--data", "phantoms", "--methods", "unet,lora"];
    for (arguments, message) in [
        (&twice[..], "unet is listed twice"),
        (&lacking, "--method-config names lora, which --methods lacks"),
        (&alone, "the method lora needs the checkpoint that it fine-tunes"),
    ] {
        let [_, stderr] = run(at, arguments, 2);
        assert!(stderr.contains(message), "{stderr}");
    }
}

#[test]
fn a_preset_names_a_method_or_the_training_of_all() {
    let folder = project();
    let at = folder.path();
    let small = "epochs = 1\nbatch_size = 8\nmodel.input_size = 64\n";
    std::fs::write(at.join("small.toml"), small).expect("writes");
    let shared = ["--data", "phantoms", "--config", "small.toml", "--run"];
    let preset = ["--foundation", "demo", "--preset", "accurate", "--no-scores"];
    let trained = run_json(at, &[&["train"], &shared[..], &["one"], &preset].concat());
    assert_eq!(trained["method"], "unet-ladder");
    let compare = ["all", "--methods", "unet", "--seeds", "1", "--preset", "accurate"];
    run_json(at, &[&["compare"], &shared[..], &compare].concat());
    for (run, method) in [("one", "unet-ladder"), ("all/unet-0", "unet")] {
        let settings = std::fs::read_to_string(at.join(run).join("config.toml")).expect("settings");
        assert!(settings.contains(&format!("method = \"{method}\"")), "{settings}");
        assert!(settings.contains("augmentation = \"upright\""), "{settings}");
        // The file comes after the preset.
        assert!(settings.contains("batch_size = 8\n"), "{settings}");
    }
}

#[cfg(unix)]
#[test]
fn a_stopped_comparison_continues() {
    let folder = project();
    let at = folder.path();
    let many = "epochs = 400\nbatch_size = 8\nmodel.input_size = 64\ncheckpoint_steps = 1000\n";
    std::fs::write(at.join("many.toml"), many).expect("writes");
    let compare = ["compare", "--data", "phantoms", "--config", "many.toml", "--run", "all"];
    let compare = [&compare[..], &["--methods", "unet", "--seeds", "1"]].concat();
    let log = at.join("all/unet-0/steps.csv");
    let steps = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    let output = interrupted(at, &compare, || steps() > 4);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("run the same command again to resume"), "{stderr}");
    let done = steps();
    assert!(done < 1200, "{done}");
    // Saved at the step at which it stopped, so that the next process continues there.
    let continued = interrupted(at, &compare, || steps() > done + 4);
    assert_eq!(continued.status.code(), Some(130));
    assert!(steps() > done + 4);
}

/// A description with fewer classes than the model.
fn one_organ() -> DatasetDescription {
    let mut description = DatasetDescription::synapse();
    description.organs.truncate(1);
    description.report_order.clear();
    description
}

/// Names of the files in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_demo_trains_over_a_checkpoint_that_is_named_or_lies_beside() {
    let folder = project();
    let at = folder.path();
    write_demo_phantoms(at);
    let named = ["demo", "--config", "tiny.toml", "--foundation", "sam.safetensors"];
    let result = run_json(at, &named);
    assert_eq!(result["foundation"], "sam.safetensors");
    assert_eq!(result["run"], "runs/demo-sam");
    assert!(at.join("runs/demo-sam/ladder.safetensors").is_file());

    std::fs::copy(at.join("sam.safetensors"), at.join("lite_medsam.pth")).expect("copies");
    let result = run_json(at, &["demo", "--config", "tiny.toml"]);
    assert_eq!(result["foundation"], "lite_medsam.pth");
    assert_eq!(result["run"], "runs/demo-lite_medsam");
    let result = run_json(at, &["demo", "--config", "tiny.toml", "--foundation", "random"]);
    assert_eq!(result["foundation"], "runs/demo/foundation.safetensors");
    fails(at, &["demo", "--foundation", "absent.pth"], &["absent.pth"]);
}

#[cfg(unix)]
#[test]
fn a_demo_stopped_by_ctrl_c_is_resumed_by_the_same_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_demo_phantoms(at);
    let config = TrainingConfig { validation_epochs: 100, ..tiny_config(30) };
    std::fs::write(at.join("tiny.toml"), config.to_toml()).expect("writes");
    let arguments = ["demo", "--config", "tiny.toml", "--json"];
    let steps = || std::fs::read_to_string(at.join("runs/demo/steps.csv")).unwrap_or_default();
    let output = interrupted(at, &arguments, || steps().lines().count() >= 3);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("run the same command again to resume"), "{stderr}");
    assert_eq!(output.stdout, b"");

    let [stdout, stderr] = run(at, &arguments, 0);
    assert!(stderr.contains("resuming after step"), "{stderr}");
    let result: Value = serde_json::from_str(&stdout).expect("JSON");
    for key in ["network", "foundation", "learning_curve"] {
        let file = PathBuf::from(result[key].as_str().expect("a path"));
        assert!(at.join(&file).is_file(), "{}", file.display());
    }
    // Thirty epochs of five steps, each logged once.
    assert_eq!(steps().lines().count(), 1 + 150);
}
