//! A run's logs as a picture.

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

type Curve = Vec<(f64, f64)>;

/// Draws the losses of `steps.csv` and the DSC of `validation.csv`, if there is any, into an SVG file. An epoch has
/// `epoch_steps` steps.
pub fn draw(run: &Path, epoch_steps: u64, file: &Path) -> Result<()> {
    let losses = ["loss", "cross_entropy", "dice_loss"];
    let curves = columns(&run.join("steps.csv"), "step", &losses)?;
    let epochs = columns(&run.join("validation.csv"), "epochs", &["mean_dsc"])?;
    let dsc: Curve = epochs[0]
        .iter()
        .map(|&(epochs, dsc)| (epochs * epoch_steps as f64, dsc))
        .collect();
    let last_step = curves[0].last().map_or(1.0, |&(step, _)| step + 1.0);
    let highest = curves.iter().flatten().map(|&(_, loss)| loss);
    let highest = highest.fold(1.0, f64::max) * 1.05;

    let root = SVGBackend::new(file, (900, 500)).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{}: {error}", file.display());
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .right_y_label_area_size(52)
        .build_cartesian_2d(0.0..last_step, 0.0..highest)
        .map_err(failed)?
        .set_secondary_coord(0.0..last_step, 0.0..1.0);
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("training loss")
        .draw()
        .map_err(failed)?;
    chart
        .configure_secondary_axes()
        .y_desc("validation DSC")
        .draw()
        .map_err(failed)?;
    let colors = [
        BLACK,
        RGBColor(0x1f, 0x77, 0xb4),
        RGBColor(0xff, 0x7f, 0x0e),
    ];
    for ((curve, name), color) in curves.into_iter().zip(losses).zip(colors) {
        chart
            .draw_series(LineSeries::new(curve, color))
            .map_err(failed)?
            .label(name.replace('_', " "))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    if !dsc.is_empty() {
        let green = RGBColor(0x2c, 0xa0, 0x2c);
        chart
            .draw_secondary_series(LineSeries::new(dsc, green.stroke_width(2)))
            .map_err(failed)?
            .label("validation DSC (right)")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], green));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

/// Columns of a table against another one.
fn columns(table: &Path, x: &str, ys: &[&str]) -> Result<Vec<Curve>> {
    let wrong = || format!("{} is no log of a run", table.display());
    let mut reader = csv::Reader::from_path(table).with_context(wrong)?;
    let header = reader.headers().with_context(wrong)?.clone();
    let place = |name: &str| {
        let place = header.iter().position(|column| column == name);
        place.with_context(wrong)
    };
    let x = place(x)?;
    let ys = ys.iter().map(|y| place(y)).collect::<Result<Vec<_>>>()?;
    let mut curves = vec![Curve::new(); ys.len()];
    for row in reader.records() {
        let row = row.with_context(wrong)?;
        let number = |place: usize| row[place].parse::<f64>().with_context(wrong);
        for (curve, &y) in curves.iter_mut().zip(&ys) {
            curve.push((number(x)?, number(y)?));
        }
    }
    Ok(curves)
}
