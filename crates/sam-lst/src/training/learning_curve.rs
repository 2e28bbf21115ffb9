//! The learning curve of a run, drawn from its logs.

use super::{STEPS_LOG, VALIDATION_LOG};
use plotters::prelude::*;
use std::fmt::Display;
use std::path::Path;

type Curve = Vec<(f64, f64)>;

const SIZE: (u32, u32) = (900, 500);
const LOSSES: [&str; 3] = ["loss", "cross_entropy", "dice_loss"];
const LOSS_COLORS: [RGBColor; 3] = [BLACK, RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xff, 0x7f, 0x0e)];
const DSC_COLOR: RGBColor = RGBColor(0x2c, 0xa0, 0x2c);

/// Draws the losses of `steps.csv` and the mean DSC of `validation.csv` as SVG. The error says what is
/// wrong with a log.
pub(super) fn draw(run: &Path, steps_per_epoch: u64) -> Result<String, String> {
    let losses = columns(&run.join(STEPS_LOG), "step", &LOSSES)?;
    let epochs = columns(&run.join(VALIDATION_LOG), "epochs", &["mean_dsc"])?;
    let dsc: Curve =
        epochs[0].iter().map(|&(epochs, dsc)| (epochs * steps_per_epoch as f64, dsc)).collect();
    let mut svg = String::new();
    draw_chart(&mut svg, losses, dsc).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn draw_chart(svg: &mut String, losses: Vec<Curve>, dsc: Curve) -> Result<(), impl Display> {
    let last_step = losses[0].last().map_or(1.0, |&(step, _)| step + 1.0);
    let highest = losses.iter().flatten().map(|&(_, loss)| loss).fold(1.0, f64::max) * 1.05;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .right_y_label_area_size(52)
        .build_cartesian_2d(0.0..last_step, 0.0..highest)?
        .set_secondary_coord(0.0..last_step, 0.0..1.0);
    let whole = |step: &f64| format!("{step:.0}");
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("training loss")
        .x_label_formatter(&whole)
        .draw()?;
    chart.configure_secondary_axes().y_desc("validation DSC").draw()?;
    for ((curve, name), color) in losses.into_iter().zip(LOSSES).zip(LOSS_COLORS) {
        chart
            .draw_series(LineSeries::new(curve, color))?
            .label(name.replace('_', " "))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    if !dsc.is_empty() {
        // Points, since a single validation makes no line.
        let points = dsc.iter().map(|&point| Circle::new(point, 3, DSC_COLOR.filled()));
        chart.draw_secondary_series(points)?;
        chart
            .draw_secondary_series(LineSeries::new(dsc.iter().copied(), DSC_COLOR.stroke_width(2)))?
            .label("validation DSC (right)")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], DSC_COLOR));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()
}

/// Columns `ys` of a CSV file against column `x`.
fn columns(table: &Path, x: &str, ys: &[&str]) -> Result<Vec<Curve>, String> {
    let wrong =
        |error: &dyn Display| format!("{} is not the log of a run: {error}", table.display());
    let mut reader = csv::Reader::from_path(table).map_err(|error| wrong(&error))?;
    let header = reader.headers().map_err(|error| wrong(&error))?.clone();
    let position = |name: &str| {
        let position = header.iter().position(|column| column == name);
        position.ok_or_else(|| wrong(&format!("it has no column `{name}`")))
    };
    let x = position(x)?;
    let ys = ys.iter().map(|y| position(y)).collect::<Result<Vec<_>, _>>()?;
    let mut curves = vec![Curve::new(); ys.len()];
    for row in reader.records() {
        let row = row.map_err(|error| wrong(&error))?;
        let number = |column: usize| row[column].parse::<f64>().map_err(|error| wrong(&error));
        for (curve, &y) in curves.iter_mut().zip(&ys) {
            curve.push((number(x)?, number(y)?));
        }
    }
    Ok(curves)
}
