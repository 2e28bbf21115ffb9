//! Reports as one HTML file that opens without network.

mod box_plot;
mod slices;

use box_plot::BoxPlot;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use sam_lst_datasets::{DatasetDescription, Image, Volume};
use sam_lst_metrics::{CaseScores, Report, Score, mean, standard_deviation};
use serde::Serialize;
use slices::CaseSlices;

/// A report as one HTML file, which needs no other file and no network: facts about a run, its
/// learning curve, scores by organ and by case, and a viewer of slices in which prediction, ground
/// truth and errors can be shown and hidden.
///
/// Slices are reduced to at most 320 pixels on their longer side. The viewer has the slices in which
/// an organ is, at most 60 of a case, evenly spaced; and the worst cases whose slices take at most
/// [`MAX_SLICE_BYTES`](Self::MAX_SLICE_BYTES) together. The page says what it leaves out.
#[derive(Debug, Clone)]
pub struct HtmlReport {
    title: String,
    facts: Vec<(String, String)>,
    settings: String,
    learning_curve: Option<String>,
    organs: Vec<OrganStyle>,
    /// From the worst to the best.
    cases: Vec<(f64, CaseSlices)>,
    added_cases: usize,
    cases_without_organs: usize,
    /// Cases from this DSC on are not shown, since the limit of the size was reached.
    best_dsc: f64,
}

/// How the viewer shows a class.
#[derive(Debug, Clone, Serialize)]
struct OrganStyle {
    class: u8,
    name: String,
    color: String,
}

/// The heading of a metric, and its value in a score.
type Metric = (String, fn(&Score) -> Option<f64>);

/// What the template shows.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    subject: &'a str,
    facts: &'a [(String, String)],
    settings: &'a str,
    /// Base64 of an SVG file.
    learning_curve: Option<&'a str>,
    organs: &'a [OrganStyle],
    sections: Vec<ProtocolSection>,
    viewer: Vec<&'a CaseSlices>,
    added_cases: usize,
    cases_without_organs: usize,
    megabytes: usize,
    style: &'a str,
    script: &'a str,
}

/// The scores under one protocol.
#[derive(Serialize)]
struct ProtocolSection {
    id: String,
    protocol: String,
    /// Headings of the metrics that are defined.
    metrics: Vec<String>,
    organs: Vec<OrganRow>,
    mean: Vec<String>,
    plot: BoxPlot,
    /// From the worst to the best.
    cases: Vec<CaseRow>,
    organ_names: Vec<String>,
}

#[derive(Serialize)]
struct OrganRow {
    name: String,
    cells: Vec<String>,
}

#[derive(Serialize)]
struct CaseRow {
    name: String,
    /// Index in the viewer.
    viewer: Option<usize>,
    cells: Vec<String>,
}

const TEMPLATE: &str = include_str!("page.html");
pub(crate) const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

impl HtmlReport {
    /// Largest size of all slices together in the file, 20 MB.
    pub const MAX_SLICE_BYTES: usize = 20_000_000;

    /// Creates a report without content. `description` names and colours the organs.
    pub fn new(title: impl Into<String>, description: &DatasetDescription) -> Self {
        let organs = description.report_classes().into_iter().map(|class| {
            let [red, green, blue] = description.color(class).0;
            OrganStyle {
                class,
                name: description.organ(class).name.clone(),
                color: format!("#{red:02x}{green:02x}{blue:02x}"),
            }
        });
        Self {
            title: title.into(),
            facts: Vec::new(),
            settings: String::new(),
            learning_curve: None,
            organs: organs.collect(),
            cases: Vec::new(),
            added_cases: 0,
            cases_without_organs: 0,
            best_dsc: f64::INFINITY,
        }
    }

    /// Adds a fact, such as the number of epochs.
    pub fn add_fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.facts.push((name.into(), value.into()));
    }

    /// Shows settings, a text such as TOML.
    pub fn with_settings(self, settings: impl Into<String>) -> Self {
        Self { settings: settings.into(), ..self }
    }

    /// Shows a learning curve, an SVG file.
    pub fn with_learning_curve(self, svg: &str) -> Self {
        use base64::Engine;
        let data = base64::engine::general_purpose::STANDARD.encode(svg);
        Self { learning_curve: Some(data), ..self }
    }

    /// Adds a case to the viewer. Its scores decide whether it is among the worst, by their mean
    /// DSC.
    ///
    /// # Panics
    ///
    /// If image, prediction and label have other shapes.
    pub fn add_case(
        &mut self,
        scores: &CaseScores,
        image: &Image,
        prediction: &Volume<u8>,
        label: &Volume<u8>,
    ) {
        self.added_cases += 1;
        let slices = CaseSlices::new(&scores.case, image, prediction, label);
        if slices.is_empty() {
            self.cases_without_organs += 1;
            return;
        }
        let dsc = mean_dsc(scores).unwrap_or(1.0);
        if dsc >= self.best_dsc {
            return;
        }
        let at = self.cases.partition_point(|(other, _)| *other <= dsc);
        self.cases.insert(at, (dsc, slices));
        let size = |cases: &[(f64, CaseSlices)]| -> usize {
            cases.iter().map(|(_, slices)| slices.bytes()).sum()
        };
        while self.cases.len() > 1 && size(&self.cases) > Self::MAX_SLICE_BYTES {
            self.best_dsc = self.cases.pop().map_or(self.best_dsc, |(dsc, _)| dsc);
        }
    }

    /// The page, with the scores of these reports.
    ///
    /// # Panics
    ///
    /// Never: the template is part of this library.
    pub fn render(&self, reports: &[Report]) -> String {
        let page = Page {
            title: &self.title,
            subject: reports.first().and_then(Report::subject).unwrap_or_default(),
            facts: &self.facts,
            settings: &self.settings,
            learning_curve: self.learning_curve.as_deref(),
            organs: &self.organs,
            sections: reports.iter().map(|report| self.section(report)).collect(),
            viewer: self.cases.iter().map(|(_, slices)| slices).collect(),
            added_cases: self.added_cases,
            cases_without_organs: self.cases_without_organs,
            megabytes: Self::MAX_SLICE_BYTES / 1_000_000,
            style: STYLE,
            script: SCRIPT,
        };
        render(TEMPLATE, &page)
    }

    fn section(&self, report: &Report) -> ProtocolSection {
        let unit = report.protocol().unit();
        let percent = |value: Option<f64>| number(value.map(|value| 100.0 * value));
        let all: [Metric; 3] = [
            ("DSC (%)".to_owned(), |score| score.dsc.map(|dsc| 100.0 * dsc)),
            (format!("HD95 ({unit})"), |score| score.hd95),
            ("surface Dice (%)".to_owned(), |score| score.surface_dice.map(|dice| 100.0 * dice)),
        ];
        let scores = || report.cases().iter().flat_map(|case| &case.scores);
        let metrics: Vec<_> =
            all.into_iter().filter(|(_, of)| scores().any(|score| of(score).is_some())).collect();
        let organ = |(index, name): (usize, &String)| {
            let values = |of: fn(&Score) -> Option<f64>| -> Vec<f64> {
                report.cases().iter().filter_map(|case| of(&case.scores[index])).collect()
            };
            let cells = metrics.iter().map(|(_, of)| with_spread(&values(*of)));
            let count = values(|score| score.dsc).len().to_string();
            OrganRow { name: name.clone(), cells: cells.chain([count]).collect() }
        };
        let mut cases: Vec<&CaseScores> = report.cases().iter().collect();
        cases.sort_by(|a, b| {
            let [a, b] = [a, b].map(|case| mean_dsc(case).unwrap_or(1.0));
            a.total_cmp(&b)
        });
        let case = |case: &CaseScores| {
            let organs = case.scores.iter().map(|score| percent(score.dsc));
            CaseRow {
                name: case.case.clone(),
                viewer: self.cases.iter().position(|(_, slices)| slices.name() == case.case),
                cells: std::iter::once(percent(mean_dsc(case))).chain(organs).collect(),
            }
        };
        ProtocolSection {
            id: report.protocol().name().to_owned(),
            protocol: report.protocol().to_string(),
            organs: report.organs().iter().enumerate().map(organ).collect(),
            mean: metrics.iter().map(|(_, of)| number(report.mean(of).mean)).collect(),
            metrics: metrics.into_iter().map(|(heading, _)| heading).collect(),
            plot: BoxPlot::new(report),
            cases: cases.into_iter().map(case).collect(),
            organ_names: report.organs().to_vec(),
        }
    }
}

/// Fills a template of this library, escaping text.
pub(crate) fn render(template: &str, page: &impl Serialize) -> String {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let page = environment.render_str(template, Serde(page));
    page.expect("a valid template that matches its data")
}

/// The mean DSC of a case's organs.
fn mean_dsc(case: &CaseScores) -> Option<f64> {
    mean(&case.scores.iter().filter_map(|score| score.dsc).collect::<Vec<_>>())
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.2}"))
}

/// The mean of values and, of several, their standard deviation.
pub(crate) fn with_spread(values: &[f64]) -> String {
    match (mean(values), standard_deviation(values)) {
        (Some(mean), Some(deviation)) => format!("{mean:.2} ± {deviation:.2}"),
        (mean, _) => number(mean),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_lst_datasets::ndarray::{Array3, Array4};
    use sam_lst_metrics::Protocol;

    fn description(organ: &str) -> DatasetDescription {
        let mut description = DatasetDescription::synapse();
        description.organs.truncate(1);
        description.organs[0].name = organ.to_owned();
        description.report_order.clear();
        description
    }

    /// A report with a case for each share of the organ that the prediction finds.
    fn report(organ: &str, found: &[usize]) -> (HtmlReport, Report) {
        let mut page = HtmlReport::new("A & <b>", &description(organ));
        let mut report = Report::new(Protocol::Reference, [organ]).with_subject("test cases");
        for (index, &found) in found.iter().enumerate() {
            let shape = [2, 8, 8];
            let classes = |voxels: usize| {
                let voxel = |(slice, y, x): (usize, usize, usize)| {
                    u8::from(64 * slice + 8 * y + x < voxels)
                };
                Volume::new(Array3::from_shape_fn(shape, voxel), None)
            };
            let (prediction, label) = (classes(found), classes(64));
            let [predicted, labelled] =
                [&prediction, &label].map(|v| v.voxels().iter().copied().collect::<Vec<u8>>());
            let scores = report.protocol().score(&predicted, &labelled, shape, None, &[1]);
            report.add(format!("case-{index}"), scores.expect("one shape"));
            let image = Image::new(Array4::from_elem([1, 2, 8, 8], 0.5), None);
            let scores = report.cases().last().expect("added");
            page.add_case(scores, &image, &prediction, &label);
        }
        (page, report)
    }

    #[test]
    fn cases_are_shown_from_the_worst_to_the_best() {
        let (page, report) = report("liver", &[64, 16, 32]);
        let html = page.render(&[report]);
        let at = |text: &str| html.find(text).unwrap_or_else(|| panic!("no {text} in\n{html}"));
        // Of 64 voxels: 2 * 16 / (64 + 16) = 40 % and 2 * 32 / (64 + 32) = 66.67 %.
        assert!(at("<td>40.00</td>") < at("<td>66.67</td>"));
        assert!(at("<td>66.67</td>") < at("<td>100.00</td>"));
        assert!(at(">case-1</option>") < at(">case-2</option>"));
        assert!(at("liver: median 66.7 %, quartiles 53.3 and 83.3 %, from 40.0 to 100.0 %") > 0);
        assert!(at("All 3 scored cases") > 0);
    }

    #[test]
    fn text_is_escaped_and_nothing_is_loaded() {
        let organ = "</script><img src=x>";
        let (mut page, report) = report(organ, &[64]);
        page.add_fact("Method", "<ladder>");
        let html = page
            .with_settings("a = \"<b>\"")
            .with_learning_curve("<svg></svg>")
            .render(std::slice::from_ref(&report));
        assert!(!html.contains("<img src=x>") && !html.contains("<b>"), "{html}");
        assert!(html.contains("&lt;ladder&gt;") && html.contains("A &amp; &lt;b&gt;"), "{html}");
        assert_eq!(html.matches("<script").count(), 2);
        assert_eq!(html.matches("</script>").count(), 2);
        for outside in ["http:", "https:", "src=\"/", "url("] {
            assert!(!html.contains(outside), "{outside} in\n{html}");
        }
    }

    #[test]
    fn a_report_without_anything_is_a_page() {
        let html = HtmlReport::new("empty", &description("liver")).render(&[]);
        assert!(html.starts_with("<!DOCTYPE html>") && !html.contains("<script"), "{html}");
    }
}
