/// How well an uncertainty distinguishes incorrect voxels from correct ones: the area under its
/// receiver operating characteristic (AUROC).
///
/// The area is the probability that an incorrect voxel is more uncertain than a correct one: 1 if all
/// are, 0.5 if the uncertainty says nothing. Uncertainties are counted in intervals of 1 / 4096, within
/// which they count as equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorDetection {
    /// Correct and incorrect voxels of each interval.
    counts: Vec<[u64; 2]>,
}

const INTERVALS: usize = 4096;

impl Default for ErrorDetection {
    fn default() -> Self {
        Self { counts: vec![[0; 2]; INTERVALS] }
    }
}

impl ErrorDetection {
    /// Without voxels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a voxel with an uncertainty in `[0, 1]`; others count as the nearest of these.
    pub fn add(&mut self, uncertainty: f32, is_incorrect: bool) {
        let interval = (uncertainty.clamp(0.0, 1.0) * INTERVALS as f32) as usize;
        self.counts[interval.min(INTERVALS - 1)][usize::from(is_incorrect)] += 1;
    }

    /// Numbers of correct and of incorrect voxels.
    pub fn voxels(&self) -> [u64; 2] {
        self.counts
            .iter()
            .fold([0; 2], |[correct, incorrect], of| [correct + of[0], incorrect + of[1]])
    }

    /// The area; `None` unless there are both correct and incorrect voxels.
    pub fn auroc(&self) -> Option<f64> {
        let [correct, incorrect] = self.voxels();
        if correct == 0 || incorrect == 0 {
            return None;
        }
        let mut ordered_pairs = 0.0;
        let mut correct_below = 0;
        for &[correct, incorrect] in &self.counts {
            ordered_pairs += incorrect as f64 * (correct_below as f64 + correct as f64 / 2.0);
            correct_below += correct;
        }
        Some(ordered_pairs / (correct as f64 * incorrect as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statistic of `scipy.stats.mannwhitneyu(incorrect, correct)`, divided by the number of pairs,
    /// 24, is 0.7708333333333334 in scipy 1.17.1.
    #[test]
    fn the_area_is_that_of_scipy() {
        let mut detection = ErrorDetection::new();
        let correct = [0.1, 0.2, 0.35, 0.35, 0.6, 0.05];
        let incorrect = [0.35, 0.8, 0.2, 0.9];
        correct.into_iter().for_each(|uncertainty| detection.add(uncertainty, false));
        incorrect.into_iter().for_each(|uncertainty| detection.add(uncertainty, true));
        assert_eq!(detection.voxels(), [6, 4]);
        let area = detection.auroc().expect("both kinds");
        assert!((area - 0.770_833_333_333_333_4).abs() < 1e-12, "{area}");
    }

    #[test]
    fn one_kind_has_no_area_and_extremes_are_counted() {
        let mut detection = ErrorDetection::new();
        assert_eq!(detection.auroc(), None);
        detection.add(0.0, false);
        assert_eq!(detection.auroc(), None);
        detection.add(1.0, true);
        assert_eq!(detection.auroc(), Some(1.0));
        detection.add(2.0, false);
        assert_eq!(detection.auroc(), Some(0.75));
    }
}
