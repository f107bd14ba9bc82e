//! The chart of a course: the demand, the vCPUs and the steal over time.

use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 360);
/// Colours that readers who cannot distinguish red and green can tell apart (Okabe and Ito).
const DEMAND: RGBColor = RGBColor(160, 160, 160);
const VCPUS: RGBColor = RGBColor(0, 114, 178);
const STEAL: RGBColor = RGBColor(213, 94, 0);

/// A machine at one time.
pub(super) struct Point {
    /// The time, in seconds.
    pub(super) at: f64,
    /// The number of busy threads of the guest.
    pub(super) demand: u32,
    /// The number of present vCPUs.
    pub(super) present: u32,
    /// The time that the vCPUs waited for host CPUs, as a number of host CPUs.
    pub(super) stolen: f64,
}

/// Returns an SVG file.
pub(super) fn draw(points: &[Point]) -> String {
    let end = points.last().map_or(1.0, |point| point.at);
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE).expect("it is in memory");
    let mut chart = ChartBuilder::on(&area)
        .caption("A guest under a changing load", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..end, 0.0..5.0)
        .expect("the area is large enough");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("seconds").y_desc("CPUs").disable_x_mesh();
    mesh.y_labels(6).max_light_lines(1);
    let whole = |number: &f64| format!("{number:.0}");
    mesh.x_label_formatter(&whole).y_label_formatter(&whole);
    mesh.draw().expect("it is in memory");
    let demand = points
        .iter()
        .map(|point| (point.at, f64::from(point.demand)));
    let area_of_demand = AreaSeries::new(demand, 0.0, DEMAND.mix(0.5));
    let steal = points.iter().map(|point| (point.at, point.stolen));
    let lines = [
        ("vCPUs", VCPUS, steps(points)),
        ("steal", STEAL, steal.collect()),
    ];
    let square = |colour: RGBColor| {
        move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled())
    };
    let drawn = chart.draw_series(area_of_demand).expect("it is in memory");
    drawn
        .label("busy threads of the guest")
        .legend(square(DEMAND));
    for (label, colour, line) in lines {
        let drawn = chart.draw_series(LineSeries::new(line, colour.stroke_width(2)));
        let drawn = drawn.expect("it is in memory");
        drawn.label(label).legend(square(colour));
    }
    let mut legend = chart.configure_series_labels();
    legend
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE);
    legend.draw().expect("it is in memory");
    area.present().expect("it is in memory");
    drop(chart);
    drop(area);
    svg
}

/// Returns the line of the vCPUs, which change at once.
fn steps(points: &[Point]) -> Vec<(f64, f64)> {
    let mut line: Vec<(f64, f64)> = Vec::new();
    for point in points {
        let present = f64::from(point.present);
        if let Some((_, last)) = line.last().copied().filter(|(_, last)| *last != present) {
            line.push((point.at, last));
        }
        line.push((point.at, present));
    }
    line
}
