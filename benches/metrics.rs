//! Times DSC and HD95 of eight organs in a full-size abdominal CT.

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sam_lst::metrics::{LabelVolume, compare_all};
use std::hint::black_box;

const SHAPE: [usize; 3] = [148, 512, 512];

/// Centre and radii of eight organs in voxels, about as large as those of a patient.
const ORGANS: [[[f64; 3]; 2]; 8] = [
    [[70.0, 260.0, 255.0], [60.0, 14.0, 14.0]],
    [[80.0, 200.0, 190.0], [10.0, 22.0, 18.0]],
    [[60.0, 290.0, 350.0], [20.0, 35.0, 30.0]],
    [[58.0, 290.0, 160.0], [20.0, 35.0, 30.0]],
    [[90.0, 230.0, 150.0], [30.0, 110.0, 90.0]],
    [[75.0, 215.0, 280.0], [10.0, 20.0, 60.0]],
    [[100.0, 290.0, 380.0], [16.0, 55.0, 35.0]],
    [[95.0, 190.0, 320.0], [22.0, 50.0, 55.0]],
];

/// DSC and HD95 of each organ, computed by `benches/metrics_medpy.py`.
const MEDPY: [[f64; 2]; 8] = [
    [0.7566100046599267, 5.0],
    [0.7365552760809678, 5.421989114301333],
    [0.8343941123935924, 5.744562646538029],
    [0.8306252127538863, 5.945451859014629],
    [0.8787003622071772, 7.483314773547883],
    [0.7465878484026187, 5.0],
    [0.8202630709030666, 5.916079783099616],
    [0.8536406537986349, 6.4031242374328485],
];

/// Labels of wavy ellipsoids, shifted by `shift` voxels; the same as in `benches/metrics_medpy.py`.
fn volume(shift: f64) -> Vec<u8> {
    let mut labels = vec![0; SHAPE.iter().product()];
    for (class, [centre, radii]) in (1..).zip(ORGANS) {
        let range = |axis: usize| {
            let reach = 1.2 * radii[axis] + shift;
            let low = (centre[axis] - reach).max(0.0) as usize;
            low..((centre[axis] + reach) as usize + 1).min(SHAPE[axis])
        };
        for z in range(0) {
            for y in range(1) {
                for x in range(2) {
                    let place = [z as f64, y as f64, x as f64];
                    let square: f64 = (0..3)
                        .map(|axis| ((place[axis] - shift - centre[axis]) / radii[axis]).powi(2))
                        .sum();
                    let [z_wave, y_wave, x_wave] = [place[0] / 5.0, place[1] / 9.0, place[2] / 7.0];
                    let wave = 0.2 * (z_wave + shift).sin() * y_wave.sin() * x_wave.sin();
                    let voxel = &mut labels[(z * SHAPE[1] + y) * SHAPE[2] + x];
                    if square < 1.0 + wave && *voxel == 0 {
                        *voxel = class;
                    }
                }
            }
        }
    }
    labels
}

fn metrics(criterion: &mut Criterion) {
    let (prediction, label) = (volume(3.0), volume(0.0));
    let classes: Vec<u8> = (1..=8).collect();
    let scores = || -> Vec<[f64; 2]> {
        let volume = |labels| LabelVolume::in_voxels(labels, SHAPE).expect("matching shape");
        compare_all(&volume(&prediction), &volume(&label), &classes)
            .expect("the same grid")
            .iter()
            .map(|organ| {
                let distances = organ.surface_distances.as_ref().expect("present in both volumes");
                [organ.dsc().expect("present in both volumes"), distances.pooled_percentile(95.0)]
            })
            .collect()
    };
    for (score, expected) in scores().into_iter().flatten().zip(MEDPY.into_iter().flatten()) {
        assert!((score - expected).abs() <= 1e-6, "{score}, medpy {expected}");
    }
    let mut group = criterion.benchmark_group("metrics");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.bench_function("eight_organs_512_512_148", |bencher| {
        bencher.iter(|| black_box(scores()));
    });
    group.finish();
}

criterion_group!(benches, metrics);
criterion_main!(benches);
