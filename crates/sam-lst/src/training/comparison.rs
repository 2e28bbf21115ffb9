//! Several methods' runs beside each other: accuracy and cost.

use super::{BEST, TrainingError, summary};
use crate::evaluation::{STYLE, render, with_spread};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfy_table::{Cell, CellAlignment, Row, Table, TableStyle, presets};
use plotters::prelude::*;
use sam_lst_metrics::{Presence, mean};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Finished runs of several methods on the same data, each from one or more seeds.
///
/// Its tables have the mean over the runs of a method, with their standard deviation, and how much
/// the DSC differs from the first method's, over the seeds that both have.
///
/// ```no_run
/// use sam_lst::training::Comparison;
///
/// # fn main() -> Result<(), sam_lst::training::TrainingError> {
/// let mut comparison = Comparison::new();
/// for seed in 0..3 {
///     comparison.add("ladder", seed, format!("runs/ladder-{seed}"))?;
///     comparison.add("U-Net", seed, format!("runs/unet-{seed}"))?;
/// }
/// println!("{comparison}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    runs: Vec<ComparedRun>,
    #[serde(skip)]
    data: Option<ComparedData>,
}

/// A run in a [`Comparison`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedRun {
    /// Name of the method in the tables.
    pub method: String,
    /// Seed of the run.
    pub seed: u64,
    /// Number of epochs.
    pub epochs: u64,
    /// Number of trained parameters.
    pub trained_parameters: u64,
    /// Size of the trained network's checkpoint.
    pub checkpoint_bytes: u64,
    /// Mean duration of a step.
    pub seconds_per_step: f64,
    /// Duration of all steps with waiting for their batches, without validations and embeddings that
    /// were computed before.
    pub step_seconds: f64,
    /// Seconds in which the run computed embeddings before its first step. Runs that share a cache
    /// compute each embedding once.
    pub precomputing_seconds: f64,
    /// Peak memory of the run's last process; `None` where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// Scores under each protocol.
    pub scores: Vec<ComparedScores>,
}

/// The mean scores of a run under one protocol.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedScores {
    /// The protocol's name.
    pub protocol: String,
    /// Unit of distances.
    pub unit: String,
    /// What was scored.
    pub subject: String,
    /// Mean DSC of the organs, 0 to 1.
    pub dsc: Option<f64>,
    /// Mean 95th percentile of surface distances.
    pub hd95: Option<f64>,
    /// Mean surface Dice of the organs, 0 to 1.
    pub surface_dice: Option<f64>,
    /// How often an organ of a case was not predicted at all.
    pub missed: usize,
    /// Name and DSC of each organ.
    pub organ_dsc: Vec<(String, Option<f64>)>,
}

/// What all runs of a comparison must share.
#[derive(Debug, Clone, PartialEq)]
struct ComparedData {
    run: PathBuf,
    /// Training and validation cases.
    cases: [Vec<SummaryCase>; 2],
    scored: Vec<Scored>,
}

/// What was scored under one protocol.
#[derive(Debug, Clone, PartialEq)]
struct Scored {
    protocol: String,
    unit: String,
    subject: Option<String>,
    cases: Vec<String>,
    organs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct SummaryCase {
    case: String,
    files_sha256: Option<String>,
}

/// The parts of `run_summary.json` that are compared.
#[derive(Deserialize)]
struct Summary {
    method: String,
    training_cases: Vec<SummaryCase>,
    validation_cases: Vec<SummaryCase>,
    trained_parameters: u64,
    steps: u64,
    epochs: u64,
    step_seconds: f64,
    precomputing_seconds: f64,
    peak_memory_bytes: Option<u64>,
    scores: Vec<SummaryScores>,
}

#[derive(Deserialize)]
struct SummaryScores {
    protocol_name: String,
    unit: String,
    subject: Option<String>,
    mean_of_organs: BTreeMap<String, SummaryMean>,
    organs: Vec<SummaryOrgan>,
    cases: Vec<SummaryScoredCase>,
}

#[derive(Deserialize)]
struct SummaryScoredCase {
    case: String,
    scores: Vec<SummaryScore>,
}

#[derive(Deserialize)]
struct SummaryScore {
    presence: Presence,
}

#[derive(Deserialize)]
struct SummaryOrgan {
    organ: String,
    means: BTreeMap<String, SummaryMean>,
}

#[derive(Deserialize)]
struct SummaryMean {
    mean: Option<f64>,
}

impl From<SummaryScores> for ComparedScores {
    fn from(scores: SummaryScores) -> Self {
        let of = |means: &BTreeMap<String, SummaryMean>, name: &str| means.get(name)?.mean;
        let mean = |name: &str| of(&scores.mean_of_organs, name);
        Self {
            dsc: mean("dsc"),
            hd95: mean("hd95"),
            surface_dice: mean("surface_dice"),
            missed: scores
                .cases
                .iter()
                .flat_map(|case| &case.scores)
                .filter(|score| score.presence == Presence::LabelOnly)
                .count(),
            organ_dsc: scores
                .organs
                .into_iter()
                .map(|organ| {
                    let dsc = of(&organ.means, "dsc");
                    (organ.organ, dsc)
                })
                .collect(),
            protocol: scores.protocol_name,
            unit: scores.unit,
            subject: scores.subject.unwrap_or_default(),
        }
    }
}

/// What the page shows.
#[derive(Serialize)]
struct Page {
    style: &'static str,
    sections: Vec<PageSection>,
    /// Base64 of an SVG file.
    plot: String,
}

#[derive(Serialize)]
struct PageSection {
    title: String,
    text: String,
    tables: Vec<PageTable>,
}

#[derive(Serialize)]
struct PageTable {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl From<Table> for PageTable {
    fn from(table: Table) -> Self {
        let cells = |row: &Row| row.cell_iter().map(Cell::content).collect();
        Self {
            header: table.header().map(cells).unwrap_or_default(),
            rows: table.row_iter().map(cells).collect(),
        }
    }
}

/// A column of the table of scores.
struct ScoreColumn {
    heading: fn(&ComparedScores) -> String,
    of: fn(&ComparedScores) -> Option<f64>,
}

const SCORES: [ScoreColumn; 4] = [
    ScoreColumn {
        heading: |_| "DSC (%)".to_owned(),
        of: |scores| scores.dsc.map(|dsc| 100.0 * dsc),
    },
    ScoreColumn { heading: |scores| format!("HD95 ({})", scores.unit), of: |scores| scores.hd95 },
    ScoreColumn {
        heading: |_| "surface Dice (%)".to_owned(),
        of: |scores| scores.surface_dice.map(|dice| 100.0 * dice),
    },
    ScoreColumn {
        heading: |_| "organs missed".to_owned(),
        of: |scores| Some(scores.missed as f64),
    },
];

/// Okabe and Ito's colours, which people with any kind of colour vision tell apart, and three others.
const COLORS: [RGBColor; 10] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x77, 0x77, 0x77),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0x4b, 0x00, 0x82),
];

impl Comparison {
    /// Creates a comparison without runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the run in a folder, which must be finished and scored
    /// ([`Trained::write_report`](super::Trained::write_report)). Methods are shown in the order in
    /// which they are first added.
    ///
    /// # Errors
    ///
    /// [`TrainingError::Read`] if the folder contains no finished and scored run, [`TrainingError::NotComparable`]
    /// if it was trained or scored on other cases than the runs before.
    pub fn add(
        &mut self,
        method: impl Into<String>,
        seed: u64,
        run: impl AsRef<Path>,
    ) -> Result<(), TrainingError> {
        let run = run.as_ref();
        let file = run.join(summary::FILE);
        let text = std::fs::read(&file).map_err(TrainingError::read(&file))?;
        let summary: Summary = serde_json::from_slice(&text)
            .map_err(|error| TrainingError::read(&file)(error.into()))?;
        let network = match run.join(BEST) {
            best if best.exists() => best,
            _ => run.join(format!("{}.safetensors", summary.method)),
        };
        let checkpoint = network.metadata().map_err(TrainingError::read(&network))?;
        let scored = summary.scores.iter().map(|scores| Scored {
            protocol: scores.protocol_name.clone(),
            unit: scores.unit.clone(),
            subject: scores.subject.clone(),
            cases: scores.cases.iter().map(|case| case.case.clone()).collect(),
            organs: scores.organs.iter().map(|organ| organ.organ.clone()).collect(),
        });
        let scored = scored.collect();
        let scores: Vec<ComparedScores> = summary.scores.into_iter().map(Into::into).collect();
        self.check_data(ComparedData {
            run: run.to_owned(),
            cases: [summary.training_cases, summary.validation_cases],
            scored,
        })?;
        self.runs.push(ComparedRun {
            method: method.into(),
            seed,
            epochs: summary.epochs,
            trained_parameters: summary.trained_parameters,
            checkpoint_bytes: checkpoint.len(),
            seconds_per_step: summary.step_seconds / summary.steps.max(1) as f64,
            step_seconds: summary.step_seconds,
            precomputing_seconds: summary.precomputing_seconds,
            peak_memory_bytes: summary.peak_memory_bytes,
            scores,
        });
        Ok(())
    }

    fn check_data(&mut self, data: ComparedData) -> Result<(), TrainingError> {
        let Some(first) = &self.data else {
            self.data = Some(data);
            return Ok(());
        };
        let difference = if data.cases != first.cases {
            "the training or validation cases, or their files"
        } else if data.scored != first.scored {
            "the scored cases, organs or protocols"
        } else {
            return Ok(());
        };
        let (first, run) = (first.run.clone(), data.run);
        Err(TrainingError::NotComparable { run, first, difference })
    }

    /// The runs, in the order in which they were added.
    pub fn runs(&self) -> &[ComparedRun] {
        &self.runs
    }

    /// The methods, in the order in which they were first added.
    fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !methods.contains(&run.method.as_str()) {
                methods.push(&run.method);
            }
        }
        methods
    }

    fn runs_of<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a ComparedRun> + 'a {
        self.runs.iter().filter(move |run| run.method == method)
    }

    /// The protocols, with the scores of one run each.
    fn protocols(&self) -> impl Iterator<Item = (usize, &ComparedScores)> {
        self.runs.first().into_iter().flat_map(|run| run.scores.iter().enumerate())
    }

    /// How much a method's DSC is above the first method's, for each seed that both have, in
    /// percentage points.
    fn differences(&self, method: &str, protocol: usize) -> Vec<f64> {
        let methods = self.methods();
        let Some(first) = methods.first() else { return Vec::new() };
        let dsc = |run: &ComparedRun| Some(100.0 * run.scores.get(protocol)?.dsc?);
        let difference = |run: &ComparedRun| {
            let other = self.runs_of(first).find(|other| other.seed == run.seed)?;
            Some(dsc(run)? - dsc(other)?)
        };
        self.runs_of(method).filter_map(difference).collect()
    }

    /// Methods by scores under a protocol.
    fn accuracy(&self, protocol: usize, style: TableStyle) -> Table {
        let methods = self.methods();
        let scores_of = |method| {
            let runs = self.runs_of(method);
            runs.filter_map(|run| run.scores.get(protocol)).collect::<Vec<_>>()
        };
        let columns: Vec<&ScoreColumn> = SCORES
            .iter()
            .filter(|column| {
                let mut runs = self.runs.iter().filter_map(|run| run.scores.get(protocol));
                runs.any(|scores| (column.of)(scores).is_some())
            })
            .collect();
        let mut table = Table::new();
        table.load_style(style);
        let mut header = vec!["method".to_owned(), "runs".to_owned()];
        if let Some(scores) = self.runs.first().and_then(|run| run.scores.get(protocol)) {
            header.extend(columns.iter().map(|column| (column.heading)(scores)));
        }
        let first = methods.first().copied().unwrap_or_default();
        header.insert(3.min(header.len()), format!("DSC minus {first}'s"));
        table.set_header(header);
        for &method in &methods {
            let scores = scores_of(method);
            let mut row = vec![method.to_owned(), scores.len().to_string()];
            row.extend(columns.iter().map(|column| {
                let values: Vec<f64> = scores.iter().filter_map(|s| (column.of)(s)).collect();
                with_spread(&values)
            }));
            let difference = if method == first {
                String::new()
            } else {
                let differences = self.differences(method, protocol);
                let sign = if mean(&differences).is_some_and(|d| d >= 0.0) { "+" } else { "" };
                format!("{sign}{}", with_spread(&differences))
            };
            row.insert(3.min(row.len()), difference);
            table.add_row(row);
        }
        align_numbers(&mut table);
        table
    }

    /// Methods by costs.
    fn costs(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header([
            "method",
            "epochs",
            "step (s)",
            "training (min)",
            "peak memory (MB)",
            "trained parameters",
            "checkpoint (MB)",
        ]);
        for method in self.methods() {
            let runs: Vec<&ComparedRun> = self.runs_of(method).collect();
            let values = |of: &dyn Fn(&ComparedRun) -> f64| -> Vec<f64> {
                runs.iter().map(|run| of(run)).collect()
            };
            let of = |of: &dyn Fn(&ComparedRun) -> f64| mean(&values(of)).unwrap_or(f64::NAN);
            let memory: Vec<f64> =
                runs.iter().filter_map(|run| Some(run.peak_memory_bytes? as f64 / 1e6)).collect();
            table.add_row([
                method.to_owned(),
                format!("{:.0}", of(&|run| run.epochs as f64)),
                format!("{:.3}", of(&|run| run.seconds_per_step)),
                with_spread(&values(&|run| run.step_seconds / 60.0)),
                memory
                    .into_iter()
                    .reduce(f64::max)
                    .map_or("unknown".to_owned(), |memory| format!("{memory:.0}")),
                format!("{:.0}", of(&|run| run.trained_parameters as f64)),
                format!("{:.1}", of(&|run| run.checkpoint_bytes as f64 / 1e6)),
            ]);
        }
        align_numbers(&mut table);
        table
    }

    /// Organs by methods: the DSC under a protocol.
    fn organs(&self, protocol: usize, style: TableStyle) -> Table {
        let methods = self.methods();
        let mut table = Table::new();
        table.load_style(style);
        table.set_header(std::iter::once("DSC (%)").chain(methods.iter().copied()));
        let first = self.runs.first().and_then(|run| run.scores.get(protocol));
        for (organ, (name, _)) in first.into_iter().flat_map(|s| s.organ_dsc.iter().enumerate()) {
            let cells = methods.iter().map(|method| {
                let dsc = |run: &ComparedRun| {
                    Some(100.0 * run.scores.get(protocol)?.organ_dsc.get(organ)?.1?)
                };
                with_spread(&self.runs_of(method).filter_map(dsc).collect::<Vec<_>>())
            });
            table.add_row(std::iter::once(name.clone()).chain(cells));
        }
        align_numbers(&mut table);
        table
    }

    fn title(&self, scores: &ComparedScores) -> String {
        let subject = if scores.subject.is_empty() { "scores" } else { &scores.subject };
        format!("{subject}; protocol: {}; mean ± standard deviation over runs", scores.protocol)
    }

    /// What the table of costs does not count.
    fn embeddings_note(&self) -> String {
        let seconds: f64 = self.runs.iter().map(|run| run.precomputing_seconds).sum();
        format!(
            "Training is the time of all steps, peak memory the largest of the runs. These runs \
             computed embeddings before their first steps for {:.1} min together; runs that share \
             a cache compute each once.",
            seconds / 60.0
        )
    }

    /// Formats the comparison as Markdown: scores under each protocol, costs, and the DSC of each
    /// organ.
    pub fn to_markdown(&self) -> String {
        let style = presets::ASCII_MARKDOWN;
        let mut text = String::new();
        for (protocol, scores) in self.protocols() {
            let (accuracy, organs) = (self.accuracy(protocol, style), self.organs(protocol, style));
            text += &format!("{}:\n\n{accuracy}\n\n{organs}\n\n", self.title(scores));
        }
        text + &format!("Costs:\n\n{}\n\n{}\n", self.costs(style), self.embeddings_note())
    }

    /// Formats the comparison as CSV: one line for each run, protocol and organ, and one with the
    /// means of the organs. Undefined values are empty.
    ///
    /// # Panics
    ///
    /// Never: writing to memory does not fail.
    pub fn to_csv(&self) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let header = [
            "method",
            "seed",
            "protocol",
            "organ",
            "dsc",
            "hd95",
            "hd95_unit",
            "surface_dice",
            "missed",
            "epochs",
            "seconds_per_step",
            "step_seconds",
            "precomputing_seconds",
            "peak_memory_bytes",
            "trained_parameters",
            "checkpoint_bytes",
        ];
        writer.write_record(header).expect("writing to memory");
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        for run in &self.runs {
            let costs = [
                run.epochs.to_string(),
                run.seconds_per_step.to_string(),
                run.step_seconds.to_string(),
                run.precomputing_seconds.to_string(),
                run.peak_memory_bytes.map_or(String::new(), |bytes| bytes.to_string()),
                run.trained_parameters.to_string(),
                run.checkpoint_bytes.to_string(),
            ];
            for scores in &run.scores {
                let means = [scores.dsc, scores.hd95, scores.surface_dice];
                let means = ("mean of organs", means, scores.missed.to_string());
                let organs = scores.organ_dsc.iter();
                let organs =
                    organs.map(|(organ, dsc)| (organ.as_str(), [*dsc, None, None], String::new()));
                for (organ, [dsc, hd95, surface_dice], missed) in
                    std::iter::once(means).chain(organs)
                {
                    let names = [&run.method, &run.seed.to_string(), &scores.protocol, organ]
                        .map(str::to_owned);
                    let unit = scores.unit.clone();
                    let values = [cell(dsc), cell(hd95), unit, cell(surface_dice), missed];
                    let record = names.iter().chain(&values).chain(&costs);
                    writer.write_record(record).expect("writing to memory");
                }
            }
        }
        String::from_utf8(writer.into_inner().expect("writing to memory")).expect("CSV is UTF-8")
    }

    /// Formats the comparison as an HTML page that opens without network: all tables and the plot.
    pub fn to_html(&self) -> String {
        let style = presets::NOTHING;
        let mut sections: Vec<PageSection> = self
            .protocols()
            .map(|(protocol, scores)| PageSection {
                title: format!("Scores, {}", scores.protocol),
                text: format!("{}.", self.title(scores)),
                tables: [self.accuracy(protocol, style), self.organs(protocol, style)]
                    .map(Into::into)
                    .into(),
            })
            .collect();
        sections.push(PageSection {
            title: "Costs".to_owned(),
            text: self.embeddings_note(),
            tables: vec![self.costs(style).into()],
        });
        let plot = STANDARD.encode(self.to_svg());
        render(include_str!("comparison.html"), &Page { style: STYLE, sections, plot })
    }

    /// Draws the DSC under the first protocol against training time as SVG: a point for each run, a
    /// larger one with the method's name for their mean.
    ///
    /// # Panics
    ///
    /// Never: drawing into memory does not fail.
    pub fn to_svg(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg).expect("drawing into memory");
        // For programs that read pictures aloud.
        let title = "<title>DSC of each method against its training time</title>\n";
        match svg.find("<rect").or_else(|| svg.find("</svg>")) {
            Some(at) => svg[..at].to_owned() + title + &svg[at..],
            None => svg,
        }
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let points = |method: &str| -> Vec<(f64, f64)> {
            let point = |run: &ComparedRun| {
                Some((run.step_seconds / 60.0, 100.0 * run.scores.first()?.dsc?))
            };
            self.runs_of(method).filter_map(point).collect()
        };
        let all = self.methods().into_iter().flat_map(points).collect::<Vec<_>>();
        let longest = all.iter().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max) * 1.2;
        let lowest = all.iter().map(|point| point.1).fold(100.0, f64::min);
        let highest = all.iter().map(|point| point.1).fold(lowest, f64::max);
        let margin = (0.1 * (highest - lowest)).max(1.0);
        let root = SVGBackend::with_string(svg, (900, 500)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..longest, (lowest - margin).max(0.0)..highest + margin)?;
        chart
            .configure_mesh()
            .x_desc("training (minutes of all steps)")
            .y_desc("mean DSC (%)")
            .draw()?;
        for (i, method) in self.methods().into_iter().enumerate() {
            let (points, color) = (points(method), COLORS[i % COLORS.len()]);
            let runs = points.iter().map(|&point| Circle::new(point, 3, color));
            chart.draw_series(runs)?;
            let means = [0, 1].map(|axis| {
                let values: Vec<f64> =
                    points.iter().map(|&(x, y)| if axis == 0 { x } else { y }).collect();
                mean(&values)
            });
            if let [Some(x), Some(y)] = means {
                let style = ("sans-serif", 15).into_font().color(&color);
                let name = Text::new(method.to_owned(), (8, -7), style);
                let mark = EmptyElement::at((x, y)) + Circle::new((0, 0), 5, color.filled()) + name;
                chart.draw_series(std::iter::once(mark))?;
            }
        }
        Ok(root.present()?)
    }
}

fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Formats scores and costs for a terminal.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let style = presets::UTF8_FULL_CONDENSED;
        for (protocol, scores) in self.protocols() {
            writeln!(f, "{}\n{}\n", self.title(scores), self.accuracy(protocol, style))?;
        }
        write!(f, "costs\n{}\n{}", self.costs(style), self.embeddings_note())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Writes what `Comparison` reads of a run.
    fn write_run(folder: &Path, dsc: f64, step_seconds: f64, cases: &[&str]) {
        let mean = |value: f64| json!({ "mean": value, "count": 1 });
        let means = json!({ "dsc": mean(dsc), "hd95": mean(10.0 * dsc) });
        let scores = json!({
            "protocol_name": "reference",
            "unit": "voxels",
            "subject": "test cases",
            "mean_of_organs": means,
            "cases": [{
                "case": "0002",
                "scores": [{ "presence": "both" }, { "presence": "label_only" }],
            }],
            "organs": [
                { "organ": "liver", "means": means },
                { "organ": "aorta", "means": { "dsc": { "mean": null, "count": 0 } } },
            ],
        });
        let cases: Vec<_> =
            cases.iter().map(|case| json!({ "case": case, "files_sha256": "00" })).collect();
        let summary = json!({
            "method": "unet",
            "training_cases": cases,
            "validation_cases": [],
            "trained_parameters": 1000,
            "steps": 10,
            "epochs": 2,
            "step_seconds": step_seconds,
            "precomputing_seconds": 30.0,
            "peak_memory_bytes": 5_000_000,
            "scores": [scores],
        });
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(folder.join(summary::FILE), summary.to_string()).expect("writes");
        std::fs::write(folder.join("unet.safetensors"), [0; 2000]).expect("writes");
    }

    fn cells<'a>(markdown: &'a str, row: &str) -> Vec<&'a str> {
        let line = markdown.lines().find(|line| line.starts_with(&format!("| {row} ")));
        let line = line.unwrap_or_else(|| panic!("no row {row} in\n{markdown}"));
        line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn means_spreads_and_paired_differences() {
        let folder = tempfile::tempdir().expect("a folder");
        let runs = [
            ("a", 0, 0.5, 60.0),
            ("b", 0, 0.75, 120.0),
            ("a", 1, 0.75, 60.0),
            ("b", 1, 0.75, 240.0),
        ];
        let mut comparison = Comparison::new();
        for (method, seed, dsc, seconds) in runs {
            let run = folder.path().join(format!("{method}-{seed}"));
            write_run(&run, dsc, seconds, &["0001"]);
            comparison.add(method, seed, run).expect("a run");
        }
        // A seed that the first method lacks counts for the mean, not for the difference.
        write_run(&folder.path().join("b-2"), 0.3, 120.0, &["0001"]);
        comparison.add("b", 2, folder.path().join("b-2")).expect("a run");
        let text = comparison.to_markdown();
        assert_eq!(cells(&text, "a"), ["a", "2", "62.50 ± 17.68", "6.25 ± 1.77", "1.00 ± 0.00"]);
        let b = ["b", "3", "60.00 ± 25.98", "+12.50 ± 17.68", "6.00 ± 2.60", "1.00 ± 0.00"];
        assert_eq!(cells(&text, "b"), b);
        assert_eq!(cells(&text, "liver"), ["liver", "62.50 ± 17.68", "60.00 ± 25.98"]);
        assert_eq!(cells(&text, "aorta"), ["aorta", "-", "-"]);
        let costs = &text[text.find("Costs:").expect("a table")..];
        let a = ["a", "2", "6.000", "1.00 ± 0.00", "5", "1000", "0.0"];
        assert_eq!(cells(costs, "a"), a);
        assert!(text.contains("for 2.5 min together"), "{text}");
        // Five runs; the organs and their mean.
        assert_eq!(comparison.to_csv().lines().count(), 1 + 5 * 3);
        assert_eq!(comparison.to_svg().matches("<circle").count(), 5 + 2);
        let html = comparison.to_html();
        for part in ["<th scope=\"row\">liver</th><td>62.50 ± 17.68</td>", "Costs", "image/svg+xml"]
        {
            assert!(html.contains(part), "no {part} in\n{html}");
        }
        assert!(!html.contains("http:") && !html.contains("https:"), "{html}");
    }

    #[test]
    fn runs_of_other_data_and_unfinished_runs_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let [first, other, missing] = ["first", "other", "missing"].map(|n| folder.path().join(n));
        write_run(&first, 0.5, 1.0, &["0001"]);
        write_run(&other, 0.5, 1.0, &["0001", "0002"]);
        let mut comparison = Comparison::new();
        comparison.add("a", 0, &first).expect("a run");
        let error = comparison.add("b", 0, &other).expect_err("other cases").to_string();
        assert!(error.contains("differ in the training or validation cases"), "{error}");
        let error = comparison.add("b", 0, &missing).expect_err("no run").to_string();
        assert!(error.contains("run_summary.json"), "{error}");
        assert_eq!(comparison.runs().len(), 1);
        assert!(Comparison::new().to_svg().starts_with("<svg"));
        assert!(!Comparison::new().to_markdown().is_empty());
        assert!(Comparison::new().to_html().starts_with("<!DOCTYPE html>"));
    }
}
