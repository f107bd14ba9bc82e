//! Owns the drawing of a sparkline. It must not know what the points mean.

use std::cell::RefCell;
use std::rc::Rc;

use gtk::cairo;
use gtk::prelude::*;

use crate::model::usage::POINTS;

/// A line of points between 0 and 1, the newest at the right.
pub(super) struct Sparkline {
    area: gtk::DrawingArea,
    points: Rc<RefCell<Vec<f64>>>,
}

impl Sparkline {
    pub(super) fn new() -> Self {
        let area = gtk::DrawingArea::builder()
            .content_height(28)
            .hexpand(true)
            .build();
        area.set_accessible_role(gtk::AccessibleRole::Presentation);
        let points = Rc::new(RefCell::new(Vec::new()));
        let drawn = Rc::clone(&points);
        area.set_draw_func(move |area, context, width, height| {
            // A failed drawing leaves the area empty.
            let _ = draw(
                area,
                context,
                (f64::from(width), f64::from(height)),
                &drawn.borrow(),
            );
        });
        Self { area, points }
    }

    pub(super) fn widget(&self) -> &gtk::DrawingArea {
        &self.area
    }

    /// Shows the points.
    pub(super) fn set(&self, points: Vec<f64>) {
        if *self.points.borrow() != points {
            *self.points.borrow_mut() = points;
            self.area.queue_draw();
        }
    }
}

fn draw(
    area: &gtk::DrawingArea,
    context: &cairo::Context,
    (width, height): (f64, f64),
    points: &[f64],
) -> Result<(), cairo::Error> {
    let style = area.style_context();
    let colour = style
        .lookup_color("accent_color")
        .unwrap_or_else(|| style.color());
    let channels = (
        f64::from(colour.red()),
        f64::from(colour.green()),
        f64::from(colour.blue()),
    );
    let (red, green, blue) = channels;
    if points.len() < 2 {
        return Ok(());
    }
    let step = width / (POINTS - 1) as f64;
    let left = width - step * (points.len() - 1) as f64;
    // Half of the line is below its centre.
    let level = |point: f64| height - 1.0 - point * (height - 2.0);
    let trace = || {
        for (index, point) in points.iter().enumerate() {
            context.line_to(left + step * index as f64, level(*point));
        }
    };
    context.move_to(left, height);
    trace();
    context.line_to(width, height);
    context.close_path();
    context.set_source_rgba(red, green, blue, 0.2);
    context.fill()?;
    context.set_line_width(1.5);
    context.set_line_join(cairo::LineJoin::Round);
    context.set_source_rgba(red, green, blue, 1.0);
    trace();
    context.stroke()
}
