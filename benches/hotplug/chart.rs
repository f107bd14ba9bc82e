//! The chart of the overheads above raw QMP.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::peers::Way;
use super::timing::Report;
use super::timing::report::Row;

const SIZE: (u32, u32) = (900, 420);
/// Colours that readers who cannot distinguish red and green can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 3] = [
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 114, 178),
];
/// The smallest overhead that the chart shows, in ms.
const LEAST: f64 = 0.1;

/// Returns an SVG file.
pub(super) fn draw(report: &Report) -> String {
    let works: Vec<&[Row]> = report.rows.chunks(Way::ALL.len()).collect();
    let overheads = report.rows.iter().map(|row| row.overhead_ms);
    let most = 2.0 * overheads.fold(1.0, f64::max);
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE).expect("it is in memory");
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Time above raw QMP, in ms (less is better)",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..works.len() as f64, (LEAST..most).log_scale())
        .expect("the area is large enough");
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(0);
    mesh.y_label_formatter(&|ms| format!("{ms}"));
    mesh.draw().expect("it is in memory");
    let (across, down) = chart.plotting_area().get_pixel_range();
    let width = (across.end - across.start) / works.len() as i32;
    for (n, rows) in works.iter().enumerate() {
        let middle = across.start + width * n as i32 + width / 2;
        let style = ("sans-serif", 12).into_text_style(&area);
        let style = style.pos(Pos::new(HPos::Center, VPos::Top));
        let label = Text::new(&*rows[0].work, (middle, down.end + 8), style);
        area.draw(&label).expect("it is in memory");
    }
    for (n, (way, colour)) in Way::NAMES[1..].iter().zip(COLOURS).enumerate() {
        let bar = |(work, rows): (usize, &&[Row])| {
            let left = work as f64 + 0.15 + 0.25 * n as f64;
            let top = rows[n + 1].overhead_ms.max(LEAST);
            Rectangle::new([(left, LEAST), (left + 0.22, top)], colour.filled())
        };
        let bars = chart.draw_series(works.iter().enumerate().map(bar));
        bars.expect("it is in memory")
            .label(*way)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    let mut legend = chart.configure_series_labels();
    legend
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE);
    legend.draw().expect("it is in memory");
    area.present().expect("it is in memory");
    drop(chart);
    drop(area);
    svg
}
