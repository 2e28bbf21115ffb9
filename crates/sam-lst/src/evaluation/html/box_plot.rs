use sam_lst_metrics::Report;
use serde::Serialize;

/// The DSC of each organ over the cases: a box from the first to the third quartile with the median,
/// lines to the smallest and largest value, and a point for each case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct BoxPlot {
    height: f64,
    rows: Vec<Row>,
    /// Positions of the axis' marks, with their percentages.
    ticks: Vec<(f64, u32)>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    /// As much of the name as there is room for.
    short_name: String,
    /// The row's centre.
    y: f64,
    /// Positions of minimum, quartiles and maximum; empty without values.
    quartiles: Vec<f64>,
    points: Vec<Point>,
    /// What the row shows, for those who do not see it.
    text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Point {
    x: f64,
    text: String,
}

/// Where the axis begins, and its length, of a plot 640 wide.
const LEFT: f64 = 150.0;
const LENGTH: f64 = 470.0;
const ROW: f64 = 34.0;
const TOP: f64 = 8.0;

impl BoxPlot {
    pub fn new(report: &Report) -> Self {
        // Tenths of a pixel are enough.
        let position = |dsc: f64| (10.0 * (LEFT + LENGTH * dsc)).round() / 10.0;
        let row = |(index, name): (usize, &String)| {
            let cases = report.cases().iter();
            let mut values: Vec<(f64, &str)> = cases
                .filter_map(|case| Some((case.scores[index].dsc?, case.case.as_str())))
                .collect();
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            let sorted: Vec<f64> = values.iter().map(|value| value.0).collect();
            let quartiles = quartiles(&sorted);
            let percent: Vec<String> =
                quartiles.iter().map(|value| format!("{:.1}", 100.0 * value)).collect();
            let text = match &percent[..] {
                [lowest, first, median, third, highest] => format!(
                    "{name}: median {median} %, quartiles {first} and {third} %, from {lowest} to \
                     {highest} %"
                ),
                _ => format!("{name}: no values"),
            };
            let point = |(dsc, case): &(f64, &str)| Point {
                x: position(*dsc),
                text: format!("case {case}: {:.1} %", 100.0 * dsc),
            };
            Row {
                name: name.clone(),
                short_name: match name.chars().count() {
                    ..=18 => name.clone(),
                    _ => name.chars().take(17).chain(['…']).collect(),
                },
                y: TOP + ROW * (index as f64 + 0.5),
                quartiles: quartiles.into_iter().map(position).collect(),
                points: values.iter().map(point).collect(),
                text,
            }
        };
        let rows: Vec<Row> = report.organs().iter().enumerate().map(row).collect();
        let ticks = [0, 20, 40, 60, 80, 100];
        Self {
            height: TOP + ROW * rows.len() as f64 + 30.0,
            rows,
            ticks: ticks.map(|percent| (position(f64::from(percent) / 100.0), percent)).into(),
        }
    }
}

/// Minimum, quartiles with linear interpolation, and maximum of ascending values.
fn quartiles(ascending: &[f64]) -> Vec<f64> {
    let Some(last) = ascending.len().checked_sub(1) else { return Vec::new() };
    let at = |share: f64| {
        let rank = share * last as f64;
        let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
        ascending[below] + (rank - rank.floor()) * (ascending[above] - ascending[below])
    };
    [0.0, 0.25, 0.5, 0.75, 1.0].map(at).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_those_of_numpy() {
        assert_eq!(quartiles(&[1.0, 2.0, 4.0, 8.0]), [1.0, 1.75, 3.0, 5.0, 8.0]);
        assert_eq!(quartiles(&[3.0]), [3.0; 5]);
        assert!(quartiles(&[]).is_empty());
    }
}
