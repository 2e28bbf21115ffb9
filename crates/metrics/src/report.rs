use crate::statistics::mean;
use crate::{Presence, Protocol, Score};
use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The scores of cases by organs under one protocol.
///
/// ```
/// use sam_lst_metrics::{Protocol, Report};
///
/// let mut report = Report::new(Protocol::Reference, ["aorta", "liver"]);
/// let (prediction, label) = ([1, 1, 2, 0], [1, 2, 2, 0]);
/// let scores = report.protocol().score(&prediction, &label, [1, 1, 4], None, &[1, 2])?;
/// report.add("0001", scores);
/// assert_eq!(report.organ_mean(0, |score| score.dsc).to_string(), "0.6667 (1)");
/// println!("{report}");
/// # Ok::<(), sam_lst_metrics::ScoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    protocol: Protocol,
    #[serde(default)]
    subject: Option<String>,
    organs: Vec<String>,
    cases: Vec<CaseScores>,
}

/// The scores of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseScores {
    /// The case's name.
    pub case: String,
    /// One score for each organ, in the report's order.
    pub scores: Vec<Score>,
}

/// A mean and the number of values that it was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean; `None` if there were no values.
    pub mean: Option<f64>,
    /// The number of values.
    pub count: usize,
}

impl Mean {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        Self { mean: mean(&values), count: values.len() }
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mean {
            Some(mean) => write!(f, "{mean:.4} ({})", self.count),
            None => f.write_str("none"),
        }
    }
}

/// How a metric's values are printed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// In the protocol's unit.
    Distance,
    /// As a percentage.
    Fraction,
}

/// A metric that reports show.
#[derive(Debug, Clone, Copy)]
struct Metric {
    name: &'static str,
    kind: Kind,
    of: fn(&Score) -> Option<f64>,
}

const METRICS: [Metric; 6] = [
    Metric { name: "DSC", kind: Kind::Fraction, of: |score| score.dsc },
    Metric { name: "HD95", kind: Kind::Distance, of: |score| score.hd95 },
    Metric { name: "HD100", kind: Kind::Distance, of: |score| score.hausdorff },
    Metric { name: "ASD", kind: Kind::Distance, of: |score| score.average_surface_distance },
    Metric { name: "surface Dice", kind: Kind::Fraction, of: |score| score.surface_dice },
    Metric { name: "volume error", kind: Kind::Fraction, of: |score| score.volume_error },
];

impl Report {
    /// Creates a report without cases. The order of `organs` is the order of the scores and of the
    /// tables.
    pub fn new(protocol: Protocol, organs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let organs = organs.into_iter().map(Into::into).collect();
        Self { protocol, subject: None, organs, cases: Vec::new() }
    }

    /// Says what was scored, such as "test cases of synapse". Every table and file names it.
    pub fn with_subject(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// What was scored.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Adds a case.
    ///
    /// # Panics
    ///
    /// If the number of scores is not the number of organs.
    pub fn add(&mut self, case: impl Into<String>, scores: Vec<Score>) {
        assert_eq!(scores.len(), self.organs.len(), "a case needs one score for each organ");
        self.cases.push(CaseScores { case: case.into(), scores });
    }

    /// The protocol of the scores.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The organs' names, in the order of the scores.
    pub fn organs(&self) -> &[String] {
        &self.organs
    }

    /// The cases, in the order in which they were added.
    pub fn cases(&self) -> &[CaseScores] {
        &self.cases
    }

    /// The mean of a metric of one organ over the cases in which the metric is defined.
    ///
    /// # Panics
    ///
    /// If `organ` is not below the number of organs.
    pub fn organ_mean(&self, organ: usize, metric: impl Fn(&Score) -> Option<f64>) -> Mean {
        Mean::of(self.cases.iter().filter_map(|case| metric(&case.scores[organ])))
    }

    /// The mean of a metric over organs of their means over cases, as in published tables. Its
    /// `count` is the number of organs.
    pub fn mean(&self, metric: impl Fn(&Score) -> Option<f64>) -> Mean {
        Mean::of((0..self.organs.len()).filter_map(|organ| self.organ_mean(organ, &metric).mean))
    }

    /// The number of cases in which an organ is in both volumes, in the label only, in the
    /// prediction only, and in neither.
    ///
    /// # Panics
    ///
    /// If `organ` is not below the number of organs.
    pub fn presence_counts(&self, organ: usize) -> [(Presence, usize); 4] {
        [Presence::Both, Presence::LabelOnly, Presence::PredictionOnly, Presence::Neither].map(
            |presence| {
                let cases = self.cases.iter();
                (presence, cases.filter(|case| case.scores[organ].presence == presence).count())
            },
        )
    }

    /// The metrics that are defined for at least one score.
    fn metrics(&self) -> Vec<Metric> {
        let scores = || self.cases.iter().flat_map(|case| &case.scores);
        METRICS
            .into_iter()
            .filter(|metric| scores().any(|score| (metric.of)(score).is_some()))
            .collect()
    }

    fn title(&self) -> String {
        let cases = match self.cases.len() {
            1 => "1 case".to_owned(),
            count => format!("{count} cases"),
        };
        let subject = self.subject.iter().map(|subject| format!("{subject}; ")).collect::<String>();
        format!("{subject}{cases}; protocol: {}; mean (number of cases)", self.protocol)
    }

    fn heading(&self, metric: Metric) -> String {
        match metric.kind {
            Kind::Distance => format!("{} ({})", metric.name, self.protocol.unit()),
            Kind::Fraction => format!("{} (%)", metric.name),
        }
    }

    fn mean_cell(metric: Metric, mean: Mean) -> String {
        let scale = match metric.kind {
            Kind::Distance => 1.0,
            Kind::Fraction => 100.0,
        };
        match mean.mean {
            Some(value) => format!("{:.2} ({})", value * scale, mean.count),
            None => "none (0)".to_owned(),
        }
    }

    /// Organs by metrics: each mean with its number of cases, and the number of cases in which the
    /// organ was a false negative or a false positive.
    fn summary(&self, style: TableStyle) -> Table {
        let metrics = self.metrics();
        let mut table = Table::new();
        table.load_style(style);
        let headings = metrics.iter().map(|&metric| self.heading(metric));
        table.set_header(
            std::iter::once("organ".to_owned())
                .chain(headings)
                .chain(["false negatives".to_owned(), "false positives".to_owned()]),
        );
        let mut totals = [0, 0];
        for (i, organ) in self.organs.iter().enumerate() {
            let [_, (_, false_negatives), (_, false_positives), _] = self.presence_counts(i);
            totals = [totals[0] + false_negatives, totals[1] + false_positives];
            let means = metrics.iter().map(|&m| Self::mean_cell(m, self.organ_mean(i, m.of)));
            let counts = [false_negatives.to_string(), false_positives.to_string()];
            table.add_row(std::iter::once(organ.clone()).chain(means).chain(counts));
        }
        let means = metrics.iter().map(|&m| {
            let mean = self.mean(m.of);
            let organs = if mean.count == 1 { "organ" } else { "organs" };
            Self::mean_cell(m, mean).replace(')', &format!(" {organs})"))
        });
        table.add_row(
            std::iter::once("mean of organs".to_owned())
                .chain(means)
                .chain(totals.map(|n| n.to_string())),
        );
        align_numbers(&mut table);
        table
    }

    /// Cases by organs, with the DSC and HD95 of each.
    fn by_case(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header(std::iter::once("case").chain(self.organs.iter().map(String::as_str)));
        for case in &self.cases {
            let cells = case.scores.iter().map(|score| {
                let dsc = score.dsc.map_or("-".to_owned(), |dsc| format!("{:.2}", 100.0 * dsc));
                let hd95 = score.hd95.map_or("-".to_owned(), |hd95| format!("{hd95:.2}"));
                format!("{dsc} / {hd95}")
            });
            table.add_row(std::iter::once(case.case.clone()).chain(cells));
        }
        align_numbers(&mut table);
        table
    }

    /// Formats the report as Markdown: what was scored and how, organs by metrics, cases by organs.
    pub fn to_markdown(&self) -> String {
        let style = presets::ASCII_MARKDOWN;
        format!(
            "{}\n\n{}\n\nDSC (%) / HD95 ({}) of each case:\n\n{}\n",
            self.title(),
            self.summary(style),
            self.protocol.unit(),
            self.by_case(style)
        )
    }

    /// Formats the report as CSV: one line for each case and organ, each with the protocol's name.
    /// Undefined values are empty.
    ///
    /// # Panics
    ///
    /// Never: writing to memory does not fail.
    pub fn to_csv(&self) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let unit = self.protocol.unit();
        let distance = |name: &str| format!("{name}_{unit}");
        writer
            .write_record([
                "protocol".to_owned(),
                "case".to_owned(),
                "organ".to_owned(),
                "presence".to_owned(),
                "dsc".to_owned(),
                distance("hd95"),
                distance("hd100"),
                distance("asd"),
                "surface_dice".to_owned(),
                "volume_error".to_owned(),
                "subject".to_owned(),
            ])
            .expect("writing to memory");
        for case in &self.cases {
            for (organ, score) in self.organs.iter().zip(&case.scores) {
                let fixed = [
                    self.protocol.to_string(),
                    case.case.clone(),
                    organ.clone(),
                    score.presence.to_string(),
                ];
                let numbers =
                    METRICS.map(|m| (m.of)(score).map_or(String::new(), |value| value.to_string()));
                let subject = self.subject.clone().unwrap_or_default();
                let record = fixed.into_iter().chain(numbers).chain([subject]);
                writer.write_record(record).expect("writing to memory");
            }
        }
        String::from_utf8(writer.into_inner().expect("writing to memory")).expect("CSV is UTF-8")
    }

    /// Formats the report as JSON: every score, the mean of each organ and over organs, and the
    /// protocol.
    ///
    /// # Panics
    ///
    /// Never: writing to memory does not fail.
    pub fn to_json(&self) -> String {
        let means = |mean: &dyn Fn(fn(&Score) -> Option<f64>) -> Mean| {
            let metrics = METRICS.map(|m| (m.name.replace(' ', "_").to_lowercase(), mean(m.of)));
            serde_json::json!(std::collections::BTreeMap::from(metrics))
        };
        let organs: Vec<_> = self
            .organs
            .iter()
            .enumerate()
            .map(|(i, organ)| {
                serde_json::json!({ "organ": organ, "means": means(&|of| self.organ_mean(i, of)) })
            })
            .collect();
        let report = serde_json::json!({
            "subject": self.subject,
            "protocol": self.protocol,
            "protocol_name": self.protocol.to_string(),
            "unit": self.protocol.unit(),
            "organs": organs,
            "mean_of_organs": means(&|of| self.mean(of)),
            "cases": self.cases,
            "order": self.organs,
        });
        serde_json::to_string_pretty(&report).expect("a report is valid JSON")
    }
}

fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Formats the report for a terminal: what was scored and how, and organs by metrics.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.title(), self.summary(presets::UTF8_FULL_CONDENSED))
    }
}
