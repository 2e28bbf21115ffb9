//! Reports of a trained model: scores, pictures and the learning curve.

use super::{LEARNING_CURVE, PICTURES, Trained, TrainingError, learning_curve, summary};
use crate::evaluation::{HtmlReport, Picture, write_png, write_reports};
use crate::inference::{SegmentationConfig, Segmenter};
use crate::model::{NetworkConfig, SegmentationNetwork};
use sam_lst_datasets::ndarray::{ArrayView2, Axis};
use sam_lst_datasets::{Case, Dataset, DatasetError, Split, replace_file};
use sam_lst_metrics::{Protocol, Report};
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

/// The HTML report.
pub(super) const PAGE: &str = "report.html";
/// Cases of which pictures are drawn.
const PICTURED_CASES: usize = 2;
/// Pictures of a case.
const PICTURES_PER_CASE: usize = 3;

/// What [`Trained::write_report`] wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    /// The split that was evaluated.
    pub split: Split,
    /// Number of evaluated cases.
    pub cases: usize,
    /// Scores under each protocol.
    pub reports: Vec<Report>,
    /// Folder of pictures.
    pub pictures: PathBuf,
    /// The learning curve, an SVG file.
    pub learning_curve: PathBuf,
    /// All of this as one page that opens without network.
    pub page: PathBuf,
}

impl<N: SegmentationNetwork> Trained<N> {
    /// Evaluates the trained model on the test cases, or on the validation or training cases if there
    /// are none, and writes scores, pictures, the learning curve and an HTML report into the run's
    /// folder.
    ///
    /// `scores-reference` and `scores-strict` are CSV, JSON and Markdown files of the two protocols, the
    /// second in voxels if a case has no voxel spacing in millimetres. The scores are also added to
    /// `run_summary.json`. `pictures` shows, for two cases, the slices with the most organs.
    /// `progress` receives the case's name, the number of its slices that are done, and the number
    /// of its slices.
    ///
    /// # Errors
    ///
    /// [`TrainingError`] if a case cannot be read or a file cannot be written.
    pub fn write_report(
        &self,
        dataset: &Dataset,
        progress: impl FnMut(&str, usize, usize),
    ) -> Result<RunReport, TrainingError> {
        let (split, cases) = evaluated_cases(dataset)?;
        let cache = self.config.embedding_cache(&self.model, &self.folders)?;
        let mut segmenter = Segmenter::new(
            &self.model,
            SegmentationConfig {
                output: self.config.output,
                embedding_precision: self.config.cache.precision,
                ..SegmentationConfig::new(self.config.geometry)
            },
        );
        if let Some(cache) = &cache {
            segmenter = segmenter.with_cache(cache);
        }
        let strict = match dataset.has_spacing(&cases)? {
            true => Protocol::strict(),
            false => Protocol::strict().in_voxels(),
        };
        let protocols = [Protocol::Reference, strict];
        let description = dataset.description();
        let title = format!("{}: {}", description.name, N::Config::METHOD);
        let mut page = HtmlReport::new(title, description);
        let reports = segmenter.evaluate_each(dataset, &cases, &protocols, progress, |case| {
            page.add_case(case.scores, &case.volumes.image, case.prediction, &case.volumes.label);
        })?;
        let run = &self.folders.run;
        let pictures = run.join(PICTURES);
        std::fs::create_dir_all(&pictures).map_err(TrainingError::write(&pictures))?;
        for case in cases.iter().take(PICTURED_CASES) {
            draw_case(&mut segmenter, dataset, case, &pictures)?;
        }
        let learning_curve = self.write_learning_curve()?;
        let page = self.write_page(page, &reports, &learning_curve)?;
        // Last, since a run with scores counts as complete.
        self.save_scores(&reports)?;
        Ok(RunReport { split, cases: cases.len(), reports, pictures, learning_curve, page })
    }

    /// Writes the HTML report.
    fn write_page(
        &self,
        mut page: HtmlReport,
        reports: &[Report],
        learning_curve: &Path,
    ) -> Result<PathBuf, TrainingError> {
        let run = &self.folders.run;
        for (name, value) in summary::facts(run)? {
            page.add_fact(name, value);
        }
        let read = TrainingError::read(learning_curve);
        let curve = std::fs::read_to_string(learning_curve).map_err(read)?;
        let page = page.with_learning_curve(&curve).with_settings(self.config.to_toml());
        let file = run.join(PAGE);
        replace_file(&file, PAGE, |temporary| std::fs::write(temporary, page.render(reports)))
            .map_err(TrainingError::write(&file))?;
        Ok(file)
    }

    /// Writes scores of the trained model into the run's folder, as [`write_reports`] with the prefix
    /// `scores`, and into `run_summary.json`.
    ///
    /// # Errors
    ///
    /// [`TrainingError`] if a file cannot be written.
    pub fn save_scores(&self, reports: &[Report]) -> Result<(), TrainingError> {
        write_reports(reports, self.folders.run.join("scores"))?;
        summary::add_scores(&self.folders.run, reports)
    }

    fn write_learning_curve(&self) -> Result<PathBuf, TrainingError> {
        let run = &self.folders.run;
        let svg = learning_curve::draw(run, self.steps_per_epoch)
            .map_err(|reason| TrainingError::read(run)(std::io::Error::other(reason)))?;
        let file = run.join(LEARNING_CURVE);
        replace_file(&file, LEARNING_CURVE, |temporary| std::fs::write(temporary, svg))
            .map_err(TrainingError::write(&file))?;
        Ok(file)
    }
}

/// The cases of the first split that has any, from test to training.
fn evaluated_cases(dataset: &Dataset) -> Result<(Split, Vec<&Case>), DatasetError> {
    for split in [Split::Test, Split::Validation] {
        if let Ok(cases) = dataset.cases(split) {
            return Ok((split, cases));
        }
    }
    Ok((Split::Train, dataset.cases(Split::Train)?))
}

/// Draws the slices of a case with the most organs: prediction and ground truth side by side.
fn draw_case(
    segmenter: &mut Segmenter<'_>,
    dataset: &Dataset,
    case: &Case,
    folder: &Path,
) -> Result<(), TrainingError> {
    let volumes = dataset.read(case)?;
    let label = volumes.label.voxels();
    let mut slices: Vec<usize> = (0..label.shape()[0]).collect();
    slices.sort_by_key(|&slice| Reverse(count_classes(label.index_axis(Axis(0), slice))));
    slices.truncate(PICTURES_PER_CASE);
    let predicted = segmenter.segment(&volumes.image.select_slices(&slices), |_| {})?;
    for (i, &slice) in slices.iter().enumerate() {
        let pixels = volumes.image.slice(slice);
        let title = match label.shape()[0] {
            1 => format!("{} case {}", case.split, case.name),
            _ => format!("{} case {}, slice {slice}", case.split, case.name),
        };
        let picture = Picture::new(title, dataset.description(), volumes.image.geometry())
            .panel("prediction", pixels, predicted.voxels().index_axis(Axis(0), i))
            .panel("ground truth", pixels, label.index_axis(Axis(0), slice))
            .render();
        let file = folder.join(format!("{}-slice{slice:03}.png", case.name));
        write_png(&picture, &file).map_err(TrainingError::write(&file))?;
    }
    Ok(())
}

fn count_classes(label: ArrayView2<'_, u8>) -> usize {
    let mut seen = [false; 256];
    label.iter().for_each(|&class| seen[usize::from(class)] = true);
    seen.iter().filter(|&&seen| seen).count()
}
