//! Parity of the metrics with medpy and DeepMind's surface-distance, and the format of reports.

use crate::support::Cases;
use sam_lst::metrics::{
    Direction, LabelVolume, Presence, Protocol, Report, ScoreError, StrictOptions, VolumeError,
    compare, compare_all,
};

const CLASS: u8 = 2;
const SPACING_MM: [f64; 3] = [3.0, 0.8, 0.9];

/// Names of the pairs of volumes in a fixture.
fn pairs(cases: &Cases) -> impl Iterator<Item = &str> {
    cases.names().filter_map(|name| name.strip_suffix(".prediction"))
}

/// Prediction, label and shape of a pair.
fn pair(cases: &Cases, name: &str) -> (Vec<u8>, Vec<u8>, [usize; 3]) {
    let [prediction, label] =
        ["prediction", "label"].map(|kind| cases.data(&format!("{name}.{kind}")));
    let shape = label.shape().dims::<3>();
    let [prediction, label] = [prediction, label].map(|data| data.iter::<u8>().collect());
    (prediction, label, shape)
}

#[test]
fn metrics_equal_medpys() {
    let cases = Cases::open("metrics");
    let mut compared = 0;
    for name in pairs(&cases) {
        let (prediction, label, shape) = pair(&cases, name);
        for (unit, spacing) in [("voxels", [1.0; 3]), ("mm", SPACING_MM)] {
            let volume =
                |labels| LabelVolume::in_mm(labels, shape, spacing).expect("matching shape");
            let comparison =
                compare(&volume(&prediction), &volume(&label), CLASS).expect("the same grid");
            assert_eq!(comparison.presence(), Presence::Both);
            let distances = comparison.surface_distances.as_ref().expect("both have a surface");
            let actual = [
                comparison.dsc().expect("the class is present"),
                distances.pooled_percentile(95.0),
                distances.hausdorff(),
                distances.mean(Direction::ToLabel),
                distances.mean(Direction::ToPrediction),
            ];
            let expected = cases.data(&format!("{name}.{unit}"));
            let pairs = actual.into_iter().zip(expected.iter::<f64>());
            for (i, (actual, expected)) in pairs.enumerate() {
                assert!(
                    (actual - expected).abs() <= 1e-6,
                    "{name}, {unit}, metric {i}: {actual}, medpy {expected}"
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 9 * 2 * 5);
}

#[test]
fn absent_classes_have_a_presence_and_no_distances() {
    let volume = |labels| LabelVolume::in_voxels(labels, [1, 1, 3]).expect("matching shape");
    let (present, absent) = ([0, 2, 2], [0, 0, 1]);
    for (prediction, label, presence, dsc, volume_error) in [
        (&present, &present, Presence::Both, Some(1.0), Some(0.0)),
        (&absent, &present, Presence::LabelOnly, Some(0.0), Some(-1.0)),
        (&present, &absent, Presence::PredictionOnly, Some(0.0), None),
        (&absent, &absent, Presence::Neither, None, None),
    ] {
        let comparison =
            compare(&volume(prediction), &volume(label), CLASS).expect("the same grid");
        assert_eq!(comparison.presence(), presence);
        assert_eq!(comparison.dsc(), dsc);
        assert_eq!(comparison.volume_error(), volume_error);
        assert_eq!(comparison.surface_distances.is_some(), presence == Presence::Both);
    }
}

#[test]
fn surface_dice_counts_both_surfaces_within_the_tolerance() {
    // Two rods of three voxels, shifted by one voxel of 2 mm along the last axis: the ends are 2 mm
    // from the other rod, and the other voxels are shared.
    let prediction = [0, 2, 2, 2, 0, 0];
    let label = [0, 0, 2, 2, 2, 0];
    let volume =
        |labels| LabelVolume::in_mm(labels, [1, 1, 6], [1.0, 1.0, 2.0]).expect("matching shape");
    let comparison = compare(&volume(&prediction), &volume(&label), CLASS).expect("the same grid");
    let distances = comparison.surface_distances.expect("both have a surface");
    assert_eq!(distances.directed(Direction::ToLabel), [0.0, 0.0, 2.0]);
    assert_eq!(distances.surface_dice(1.9), 4.0 / 6.0);
    assert_eq!(distances.surface_dice(2.0), 1.0);
    assert_eq!(distances.larger_percentile(50.0), 0.0);
    assert_eq!(distances.hausdorff(), 2.0);
}

#[test]
fn comparing_all_classes_equals_comparing_each() {
    let labels: Vec<u8> = (0..5 * 6 * 7).map(|i| (i * i / 3 % 4) as u8).collect();
    let shifted: Vec<u8> = labels.iter().skip(3).chain(&labels[..3]).copied().collect();
    let volume =
        |labels| LabelVolume::in_mm(labels, [5, 6, 7], SPACING_MM).expect("matching shape");
    let (prediction, label) = (volume(&shifted), volume(&labels));
    let all = compare_all(&prediction, &label, &[3, 1, 9]).expect("the same grid");
    for (class, comparison) in [3, 1, 9].into_iter().zip(all) {
        assert_eq!(compare(&prediction, &label, class), Ok(comparison));
    }
}

#[test]
fn invalid_volumes_are_reported() {
    let message = |error: VolumeError| error.to_string();
    assert_eq!(
        message(LabelVolume::in_voxels(&[0; 5], [1, 2, 3]).unwrap_err()),
        "a label volume of shape [1, 2, 3] needs 6 labels, found 5"
    );
    let huge = LabelVolume::in_voxels(&[0; 5], [usize::MAX, 2, 3]).unwrap_err();
    assert!(message(huge).contains(&format!("needs more than {} labels", usize::MAX)));
    for spacing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = LabelVolume::in_mm(&[0; 6], [1, 2, 3], [1.0, spacing, 1.0]).unwrap_err();
        assert!(message(error).starts_with("voxel spacing must be positive and finite"));
    }
    let a = LabelVolume::in_voxels(&[0; 6], [1, 2, 3]).expect("matching shape");
    let b = LabelVolume::in_voxels(&[0; 6], [3, 2, 1]).expect("matching shape");
    let c = LabelVolume::in_mm(&[0; 6], [1, 2, 3], [1.0, 1.0, 2.0]).expect("matching shape");
    assert!(matches!(compare(&a, &b, 1), Err(VolumeError::Shapes { .. })));
    assert!(matches!(compare(&a, &c, 1), Err(VolumeError::Spacings { .. })));
    let empty = LabelVolume::in_voxels(&[], [0, 2, 3]).expect("matching shape");
    assert_eq!(compare(&empty, &empty, 1).map(|c| c.presence()), Ok(Presence::Neither));
}

/// Scores all eight pairs of the fixture.
#[test]
fn the_reference_protocol_equals_medpys_dc_hd95_and_asd() {
    let cases = Cases::open("metrics");
    let mut compared = 0;
    for name in pairs(&cases) {
        let (prediction, label, shape) = pair(&cases, name);
        let [score] = Protocol::Reference
            .score(&prediction, &label, shape, Some(SPACING_MM), &[CLASS])
            .expect("the same grid")
            .try_into()
            .expect("one class");
        let expected: Vec<f64> = cases.data(&format!("{name}.voxels")).iter::<f64>().collect();
        let [dc, hd95, _, asd, _] = expected.try_into().expect("five numbers");
        for (actual, expected) in
            [(score.dsc, dc), (score.hd95, hd95), (score.average_surface_distance, asd)]
        {
            let actual = actual.expect("present in both volumes");
            assert!((actual - expected).abs() <= 1e-6, "{name}: {actual}, medpy {expected}");
        }
        compared += 1;
    }
    assert_eq!(compared, 9);
}

#[test]
fn the_strict_protocol_equals_deepminds_where_the_definitions_coincide() {
    let cases = Cases::open("surface_distance");
    let mut compared = 0;
    for name in pairs(&cases) {
        let (prediction, label, shape) = pair(&cases, name);
        let expected = |metric: &str| {
            let numbers = cases.data(&format!("{name}.{metric}"));
            numbers.iter::<f64>().next().expect("one number")
        };
        let score = |surface_dice_tolerance_mm| {
            let options = StrictOptions { surface_dice_tolerance_mm, ..StrictOptions::default() };
            let scores =
                Protocol::Strict(options).score(&prediction, &label, shape, Some(SPACING_MM), &[1]);
            scores.expect("the same grid")[0]
        };
        let actual = score(expected("hd100") + 1e-9);
        assert_eq!(actual.dsc, Some(expected("dice")), "{name}");
        let is_close = |actual: Option<f64>, expected: f64| {
            (actual.expect("present in both volumes") - expected).abs() <= 1e-9
        };
        assert!(is_close(actual.hausdorff, expected("hd100")), "{name}: {actual:?}");
        if !["nested", "apart"].contains(&name) {
            assert!(is_close(actual.hd95, expected("hd95")), "{name}: {actual:?}");
        }
        let surface_dice: Vec<f64> =
            cases.data(&format!("{name}.surface_dice")).iter::<f64>().collect();
        assert_eq!(actual.surface_dice, Some(surface_dice[0]), "{name}");
        if surface_dice[1] == 0.0 || surface_dice[1] == 1.0 {
            assert_eq!(score(0.0).surface_dice, Some(surface_dice[1]), "{name}");
        }
        compared += 1;
    }
    assert_eq!(compared, 6);
}

#[test]
fn each_protocol_scores_absent_organs_in_its_own_way() {
    let (present, absent) = ([0_u8, 2, 2], [0_u8, 0, 1]);
    // Prediction, label, the reference protocol's DSC and HD95, the strict protocol's DSC and
    // surface Dice.
    for (prediction, label, reference, strict) in [
        (&present, &absent, [1.0, 0.0], Some(0.0)),
        (&absent, &present, [0.0, 0.0], Some(0.0)),
        (&absent, &absent, [0.0, 0.0], None),
    ] {
        let score = |protocol: Protocol| {
            protocol
                .score(prediction, label, [1, 1, 3], Some([1.0; 3]), &[CLASS])
                .expect("the same grid")[0]
        };
        let score_by_reference = score(Protocol::Reference);
        assert_eq!([score_by_reference.dsc, score_by_reference.hd95], reference.map(Some));
        let score = score(Protocol::strict());
        assert_eq!([score.dsc, score.surface_dice], [strict; 2]);
        assert_eq!([score.hd95, score.hausdorff, score.average_surface_distance], [None; 3]);
    }
    let unknown = Protocol::strict().score(&present, &absent, [1, 1, 3], None, &[CLASS]);
    assert_eq!(unknown, Err(ScoreError::UnknownSpacing));
    // In voxels, absent organs count as in millimetres.
    let strict = Protocol::strict().in_voxels();
    let scores = strict.score(&present, &absent, [1, 1, 3], None, &[CLASS]).expect("in voxels");
    assert_eq!((scores[0].dsc, scores[0].hd95, strict.unit()), (Some(0.0), None, "voxels"));
    assert_eq!(
        strict.to_string(),
        "strict (HD95 larger of both directions, surface Dice at 1 voxels)"
    );
    let shifted = strict.score(&[2, 2, 0, 0], &[0, 0, 2, 2], [1, 1, 4], None, &[CLASS]);
    assert_eq!(shifted.expect("in voxels")[0].hausdorff, Some(2.0));
    assert!(Protocol::Reference.score(&present, &absent, [1, 1, 3], None, &[CLASS]).is_ok());
}

/// Two cases of two organs. The second organ is a false negative in one case and absent from both
/// volumes of the other.
fn report(protocol: Protocol) -> Report {
    let mut report =
        Report::new(protocol, ["liver", "gallbladder"]).with_subject("test cases of a");
    for (case, prediction, label) in [
        ("0001", [1_u8, 1, 0, 0, 0, 0], [1_u8, 1, 1, 0, 2, 0]),
        ("0002", [0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]),
    ] {
        let scores = protocol.score(&prediction, &label, [1, 1, 6], Some([5.0, 1.0, 2.0]), &[1, 2]);
        report.add(case, scores.expect("the same grid"));
    }
    report
}

#[test]
fn a_report_states_its_protocol_its_means_and_their_counts() {
    let strict = report(Protocol::strict());
    assert_eq!(strict.organ_mean(0, |score| score.dsc).to_string(), "0.9000 (2)");
    assert_eq!(strict.organ_mean(1, |score| score.dsc).to_string(), "0.0000 (1)");
    assert_eq!(strict.organ_mean(1, |score| score.hd95).to_string(), "none");
    assert_eq!(strict.mean(|score| score.dsc).mean, Some(0.45));
    assert_eq!(strict.mean(|score| score.hd95).count, 1);
    let reference = report(Protocol::Reference);
    assert_eq!(reference.organ_mean(1, |score| score.hd95).to_string(), "0.0000 (2)");

    let table = strict.to_string();
    assert!(table.starts_with(
        "test cases of a; 2 cases; protocol: strict (HD95 larger of both directions, surface Dice at \
         1 mm);"
    ));
    let line = |text: &str, start: &str| -> String {
        text.lines()
            .find(|line| line.contains(start))
            .unwrap_or_else(|| panic!("{text}"))
            .to_owned()
    };
    assert!(line(&table, "gallbladder").contains("none (0)"), "{table}");
    assert!(table.contains("HD95 (mm)"), "{table}");
    assert!(line(&table, "mean of organs").contains("45.00 (2 organs)"), "{table}");
    assert!(reference.to_string().contains("HD95 (voxels)"));

    let markdown = reference.to_markdown();
    assert!(markdown.starts_with("test cases of a; 2 cases; protocol: reference;"), "{markdown}");
    assert!(line(&markdown, "0001").contains("80.00 / 0.80"), "{markdown}");

    let csv = strict.to_csv();
    assert_eq!(csv.lines().count(), 5);
    assert!(csv.starts_with(
        "protocol,case,organ,presence,dsc,hd95_mm,hd100_mm,asd_mm,surface_dice,volume_error,subject\n"
    ));
    assert!(line(&csv, "0002,gallbladder").ends_with("neither,,,,,,,test cases of a"), "{csv}");
    assert!(
        line(&csv, "0001,gallbladder").ends_with("label_only,0,,,,0,-1,test cases of a"),
        "{csv}"
    );

    let json: serde_json::Value = serde_json::from_str(&strict.to_json()).expect("valid JSON");
    assert_eq!(json["mean_of_organs"]["dsc"]["mean"], 0.45);
    assert_eq!(json["organs"][1]["organ"], "gallbladder");
    assert_eq!(json["cases"][0]["scores"][1]["presence"], "label_only");
    assert!(json["protocol_name"].as_str().expect("a string").starts_with("strict"));
    assert_eq!(json["unit"], "mm");
    assert_eq!(json["subject"], "test cases of a");
}
