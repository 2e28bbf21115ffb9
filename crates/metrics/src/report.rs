use crate::{Presence, Protocol, Score};
use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Scores of cases by organs, under one protocol.
///
/// ```
/// use metrics::{Protocol, Report};
///
/// let mut report = Report::new(Protocol::Reference, ["aorta", "liver"]);
/// let (prediction, label) = ([1, 1, 2, 0], [1, 2, 2, 0]);
/// let scores = report.protocol().score(&prediction, &label, [1, 1, 4], None, &[1, 2])?;
/// report.add("0001", scores);
/// assert_eq!(report.organ_mean(0, |score| score.dsc).to_string(), "0.6667 (1)");
/// println!("{report}");
/// # Ok::<(), metrics::ScoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    protocol: Protocol,
    organs: Vec<String>,
    cases: Vec<CaseScores>,
}

/// The scores of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseScores {
    /// Its name.
    pub case: String,
    /// By organ, in the report's order.
    pub scores: Vec<Score>,
}

/// A mean, and how many values are behind it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean; none of nothing.
    pub mean: Option<f64>,
    /// Values that have a part in it.
    pub count: usize,
}

impl Mean {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut sum, mut count) = (0.0, 0);
        for value in values {
            sum += value;
            count += 1;
        }
        Self {
            mean: (count > 0).then(|| sum / count as f64),
            count,
        }
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

/// What a measure's numbers are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// In the protocol's unit.
    Distance,
    /// Shown as a percentage.
    Share,
}

/// A measure that reports have.
#[derive(Debug, Clone, Copy)]
struct Measure {
    name: &'static str,
    kind: Kind,
    of: fn(&Score) -> Option<f64>,
}

const MEASURES: [Measure; 6] = [
    Measure {
        name: "DSC",
        kind: Kind::Share,
        of: |score| score.dsc,
    },
    Measure {
        name: "HD95",
        kind: Kind::Distance,
        of: |score| score.hd95,
    },
    Measure {
        name: "HD100",
        kind: Kind::Distance,
        of: |score| score.hausdorff,
    },
    Measure {
        name: "ASD",
        kind: Kind::Distance,
        of: |score| score.average_surface_distance,
    },
    Measure {
        name: "surface Dice",
        kind: Kind::Share,
        of: |score| score.surface_dice,
    },
    Measure {
        name: "volume error",
        kind: Kind::Share,
        of: |score| score.volume_error,
    },
];

impl Report {
    /// A report without cases. Organs are named in the order in which scores come and tables show them.
    pub fn new(protocol: Protocol, organs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            protocol,
            organs: organs.into_iter().map(Into::into).collect(),
            cases: Vec::new(),
        }
    }

    /// Adds a case.
    ///
    /// # Panics
    ///
    /// If there is not one score for each organ.
    pub fn add(&mut self, case: impl Into<String>, scores: Vec<Score>) {
        assert_eq!(scores.len(), self.organs.len(), "one score for each organ");
        self.cases.push(CaseScores {
            case: case.into(),
            scores,
        });
    }

    /// What the scores were made with.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The organs.
    pub fn organs(&self) -> &[String] {
        &self.organs
    }

    /// The cases.
    pub fn cases(&self) -> &[CaseScores] {
        &self.cases
    }

    /// Mean of a measure of one organ over the cases that have it.
    ///
    /// # Panics
    ///
    /// If there is no such organ.
    pub fn organ_mean(&self, organ: usize, measure: impl Fn(&Score) -> Option<f64>) -> Mean {
        Mean::of(
            self.cases
                .iter()
                .filter_map(|case| measure(&case.scores[organ])),
        )
    }

    /// Mean of a measure over organs of their means over cases, as published tables have it. Its count is of organs.
    pub fn mean(&self, measure: impl Fn(&Score) -> Option<f64>) -> Mean {
        Mean::of((0..self.organs.len()).filter_map(|organ| self.organ_mean(organ, &measure).mean))
    }

    /// How often an organ was where: in both volumes, in the label only, in the prediction only, in neither.
    ///
    /// # Panics
    ///
    /// If there is no such organ.
    pub fn presences(&self, organ: usize) -> [(Presence, usize); 4] {
        [
            Presence::Both,
            Presence::LabelOnly,
            Presence::PredictionOnly,
            Presence::Neither,
        ]
        .map(|presence| {
            let cases = self.cases.iter();
            (
                presence,
                cases
                    .filter(|case| case.scores[organ].presence == presence)
                    .count(),
            )
        })
    }

    /// Measures that some score has.
    fn measures(&self) -> Vec<Measure> {
        let scores = || self.cases.iter().flat_map(|case| &case.scores);
        MEASURES
            .into_iter()
            .filter(|measure| scores().any(|score| (measure.of)(score).is_some()))
            .collect()
    }

    fn title(&self) -> String {
        let cases = match self.cases.len() {
            1 => "1 case".to_owned(),
            count => format!("{count} cases"),
        };
        format!(
            "protocol: {}; {cases}; mean (cases behind it)",
            self.protocol
        )
    }

    fn heading(&self, measure: Measure) -> String {
        match measure.kind {
            Kind::Distance => format!("{} ({})", measure.name, self.protocol.unit()),
            Kind::Share => format!("{} (%)", measure.name),
        }
    }

    fn mean_cell(measure: Measure, mean: Mean) -> String {
        let scale = match measure.kind {
            Kind::Distance => 1.0,
            Kind::Share => 100.0,
        };
        match mean.mean {
            Some(value) => format!("{:.2} ({})", value * scale, mean.count),
            None => "none (0)".to_owned(),
        }
    }

    /// Organs by measures: means with the number of cases behind each, and how often an organ was missed or made up.
    fn summary(&self, style: TableStyle) -> Table {
        let measures = self.measures();
        let mut table = Table::new();
        table.load_style(style);
        let headings = measures.iter().map(|&measure| self.heading(measure));
        table.set_header(
            std::iter::once("organ".to_owned())
                .chain(headings)
                .chain(["missed".to_owned(), "made up".to_owned()]),
        );
        let mut totals = [0, 0];
        for (i, organ) in self.organs.iter().enumerate() {
            let [_, (_, missed), (_, made_up), _] = self.presences(i);
            totals = [totals[0] + missed, totals[1] + made_up];
            let means = measures
                .iter()
                .map(|&m| Self::mean_cell(m, self.organ_mean(i, m.of)));
            let counts = [missed.to_string(), made_up.to_string()];
            table.add_row(std::iter::once(organ.clone()).chain(means).chain(counts));
        }
        let means = measures.iter().map(|&m| {
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

    /// Cases by organs, DSC and HD95 of each.
    fn by_case(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header(std::iter::once("case").chain(self.organs.iter().map(String::as_str)));
        for case in &self.cases {
            let cells = case.scores.iter().map(|score| {
                let dsc = score
                    .dsc
                    .map_or("-".to_owned(), |dsc| format!("{:.2}", 100.0 * dsc));
                let hd95 = score
                    .hd95
                    .map_or("-".to_owned(), |hd95| format!("{hd95:.2}"));
                format!("{dsc} / {hd95}")
            });
            table.add_row(std::iter::once(case.case.clone()).chain(cells));
        }
        align_numbers(&mut table);
        table
    }

    /// As Markdown: the protocol, organs by measures, cases by organs.
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

    /// As CSV: a line for each case and organ, with the protocol's name in each. What is not defined is empty.
    ///
    /// # Panics
    ///
    /// Never: it is written to memory.
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
            ])
            .expect("memory");
        for case in &self.cases {
            for (organ, score) in self.organs.iter().zip(&case.scores) {
                let fixed = [
                    self.protocol.to_string(),
                    case.case.clone(),
                    organ.clone(),
                    score.presence.to_string(),
                ];
                let numbers = MEASURES
                    .map(|m| (m.of)(score).map_or(String::new(), |value| value.to_string()));
                writer
                    .write_record(fixed.into_iter().chain(numbers))
                    .expect("memory");
            }
        }
        String::from_utf8(writer.into_inner().expect("memory")).expect("text")
    }

    /// As JSON: every score, the means of organs and of all, and the protocol.
    ///
    /// # Panics
    ///
    /// Never: it is written to memory.
    pub fn to_json(&self) -> String {
        let means = |mean: &dyn Fn(fn(&Score) -> Option<f64>) -> Mean| {
            let measures = MEASURES.map(|m| (m.name.replace(' ', "_").to_lowercase(), mean(m.of)));
            serde_json::json!(std::collections::BTreeMap::from(measures))
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
            "protocol": self.protocol,
            "protocol_name": self.protocol.to_string(),
            "unit": self.protocol.unit(),
            "organs": organs,
            "mean_of_organs": means(&|of| self.mean(of)),
            "cases": self.cases,
            "order": self.organs,
        });
        serde_json::to_string_pretty(&report).expect("plain data")
    }
}

fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// For a terminal: the protocol, and organs by measures.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\n{}",
            self.title(),
            self.summary(presets::UTF8_FULL_CONDENSED)
        )
    }
}
