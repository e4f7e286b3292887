//! The plots of a report, as SVG files.

use std::fs;
use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::findings::{Curve, Findings, Histogram};

const SIZE: (u32, u32) = (640, 320);
const INK: RGBColor = RGBColor(31, 90, 166);
const PALE: RGBColor = RGBColor(170, 196, 226);

/// A written plot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plot {
    pub(super) stage: String,
    pub(super) title: String,
    pub(super) file: String,
    pub(super) is_histogram: bool,
}

/// Writes every plot of the findings to a folder.
pub(super) fn write_all(folder: &Path, findings: &Findings) -> anyhow::Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for (stage, histogram) in &findings.pass_rates {
        let title = format!("pass rates of {stage}");
        let svg = histogram_svg(&title, histogram).map_err(|error| anyhow!("{title}: {error}"))?;
        plots.push(write(folder, stage, "pass-rates", title, true, &svg)?);
    }
    for curve in &findings.curves {
        let title = format!("{} of {}", curve.label, curve.stage);
        let svg = curve_svg(&title, curve).map_err(|error| anyhow!("{title}: {error}"))?;
        plots.push(write(folder, &curve.stage, curve.name, title, false, &svg)?);
    }
    Ok(plots)
}

fn write(
    folder: &Path,
    stage: &str,
    name: &str,
    title: String,
    is_histogram: bool,
    svg: &str,
) -> anyhow::Result<Plot> {
    let file = format!("{stage}-{name}.svg").replace('_', "-");
    fs::write(folder.join(&file), svg)?;
    Ok(Plot {
        stage: stage.to_owned(),
        title,
        file,
        is_histogram,
    })
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

fn curve_svg(title: &str, curve: &Curve) -> Drawn {
    let points: Vec<(f64, f64)> = curve
        .points
        .iter()
        .filter(|(_, value)| value.is_finite())
        .map(|(step, value)| (*step as f64, *value))
        .collect();
    let (first, last) = (
        points.first().map_or(0.0, |point| point.0),
        points.last().map_or(1.0, |point| point.0),
    );
    let low = points
        .iter()
        .map(|point| point.1)
        .fold(f64::INFINITY, f64::min)
        .min(0.0);
    let high = points
        .iter()
        .map(|point| point.1)
        .fold(f64::NEG_INFINITY, f64::max);
    let high = if high > low {
        high + 0.05 * (high - low)
    } else {
        low + 1.0
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(first..last.max(first + 1.0), low..high)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .x_desc("step")
            .y_desc(curve.name)
            .draw()?;
        chart.draw_series(LineSeries::new(
            points.iter().copied(),
            PALE.stroke_width(1),
        ))?;
        chart.draw_series(LineSeries::new(smoothed(&points), INK.stroke_width(2)))?;
        area.present()?;
    }
    Ok(svg)
}

/// The mean of the points around each point, over a tenth of the steps: the trend behind the noise of small batches.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 20;
    (0..points.len())
        .map(|index| {
            let around =
                &points[index.saturating_sub(reach)..(index + reach + 1).min(points.len())];
            (
                points[index].0,
                around.iter().map(|point| point.1).sum::<f64>() / around.len() as f64,
            )
        })
        .collect()
}

fn histogram_svg(title: &str, histogram: &Histogram) -> Drawn {
    let bars = histogram.bars();
    let highest = bars.into_iter().max().unwrap_or(0).max(1);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(
                (0..bars.len() - 1).into_segmented(),
                0..highest + highest.div_ceil(10),
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(bars.len())
            .x_label_formatter(&|segment| match segment {
                SegmentValue::CenterOf(bar) => Histogram::BARS
                    .get(*bar)
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
                SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
            })
            .x_desc("pass rate")
            .y_desc("prompts")
            .draw()?;
        chart.draw_series(bars.into_iter().enumerate().map(|(bar, height)| {
            let mut rectangle = Rectangle::new(
                [
                    (SegmentValue::Exact(bar), 0),
                    (SegmentValue::Exact(bar + 1), height),
                ],
                INK.filled(),
            );
            rectangle.set_margin(0, 0, 6, 6);
            rectangle
        }))?;
        area.present()?;
    }
    Ok(svg)
}
