//! Draws the live mode.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row as TableRow, Table, Wrap};

use super::app::{App, Mode};
use super::rates::Machine;
use super::rows::{HEADINGS, Row};
use crate::query::counted;

/// The minimum widths of the columns after the first one, which gets the rest of the line.
const WIDTHS: [usize; 7] = [8, 5, 7, 6, 6, 6, 3];
/// The maximum width of a column after the first one: QEMU chooses the length of its state.
const MAX_WIDTH: usize = 16;
/// The minimum width of the first column.
const NAME_WIDTH: u16 = 12;
/// The first column with numbers, which are aligned to the right.
const NUMBERS: usize = 2;

const KEYS: &str = "q quit  h help  / filter  Enter vCPUs  e all vCPUs  sort: n u s t p r";

const HELP: &str = "\
Up, Down, Page Up, Page Down, Home, End  select a row
Enter, Space, Right, Left                show or hide the vCPUs of the machine
e                                        show or hide the vCPUs of all machines
n, u, s, t, p                            sort by name, use, steal time,
                                         throttled time, or pending removals
r                                        reverse the order
/                                        show only machines with a text in
                                         their names
Esc                                      show all machines
h, ?                                     show this help
q, Ctrl-C                                quit

USE%    CPU time, in percent of one host CPU; with QEMU's own threads
STEAL%  time in which the vCPU was runnable and did not run
THROT%  time in which the vCPU had used its quota
CPU     the host CPU on which the vCPU ran last

Press a key to return.";

/// Returns the numbers of machines and vCPUs.
pub(crate) fn summary(machines: &[Machine]) -> String {
    let vcpus = machines.iter().map(|machine| machine.vcpus.len()).sum();
    let machines = counted(machines.len(), "machine");
    format!("{machines}, {}", counted(vcpus, "vCPU"))
}

pub(crate) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let problem = if app.problem.is_some() { 3 } else { 1 };
    let heights = [
        Constraint::Length(1),
        Constraint::Length(problem),
        Constraint::Min(1),
        Constraint::Length(1),
    ];
    let [top, message, middle, bottom] = Layout::vertical(heights).areas(frame.area());
    frame.render_widget(title(app), top);
    if let Some(problem) = &app.problem {
        let text = format!("No new sample: {problem}");
        let text = Paragraph::new(text).wrap(Wrap { trim: true });
        frame.render_widget(text.style(Style::new().fg(Color::Red)), message);
    }
    if app.mode == Mode::Help {
        frame.render_widget(Paragraph::new(HELP), middle);
    } else {
        draw_table(frame, app, middle);
    }
    let line = match app.mode {
        Mode::Filter => format!(
            "Filter: {}_  (Enter: keep, Esc: show all)",
            app.choice.filter
        ),
        Mode::Table | Mode::Help => KEYS.to_owned(),
    };
    frame.render_widget(Line::from(line).dim(), bottom);
}

fn title(app: &App) -> Line<'static> {
    let mut title = format!(
        "vcpuctl top: {}; sorted by {}",
        summary(&app.machines),
        app.choice.sort.name()
    );
    if app.choice.is_reversed {
        title += ", reversed";
    }
    if !app.choice.filter.is_empty() {
        title += &format!("; filter \"{}\"", app.choice.filter);
    }
    Line::from(title).bold()
}

fn draw_table(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let rows = app.rows();
    if rows.is_empty() {
        let text = if app.machines.is_empty() {
            "vcpud has no machines. vcpud(8) describes how QEMU must be started.".to_owned()
        } else {
            format!(
                "No machine has \"{}\" in its name. Press Esc to show all.",
                app.choice.filter
            )
        };
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
    }
    let widths = WIDTHS.iter().enumerate().map(|(column, minimum)| {
        let lengths = rows.iter().map(|row| row.cells[column + 1].len());
        lengths.fold(*minimum, usize::max).min(MAX_WIDTH) as u16
    });
    let widths = fitting(NAME_WIDTH, widths, area.width).map(Constraint::Length);
    let widths: Vec<_> = std::iter::once(Constraint::Min(NAME_WIDTH))
        .chain(widths)
        .collect();
    let mut headings = HEADINGS.map(str::to_owned);
    headings[0].insert_str(0, "  ");
    let header = TableRow::new(cells(headings)).bold();
    let table = Table::new(rows.into_iter().map(row), widths)
        .header(header)
        .row_highlight_style(Style::new().reversed());
    frame.render_stateful_widget(table, area, &mut app.table);
}

/// Returns the `widths` of the columns that fit into `room` after one of the width `first`: a part of a number would be
/// a wrong number.
fn fitting(first: u16, widths: impl Iterator<Item = u16>, room: u16) -> impl Iterator<Item = u16> {
    let mut used = first;
    widths.take_while(move |width| {
        // Columns have a space between them.
        used = used.saturating_add(*width).saturating_add(1);
        used <= room
    })
}

fn row(row: Row) -> TableRow<'static> {
    let mut texts = row.cells;
    let mark = match row.is_expanded {
        Some(true) => "- ",
        Some(false) => "+ ",
        None => "  ",
    };
    texts[0].insert_str(0, mark);
    TableRow::new(cells(texts))
}

fn cells(texts: [String; 8]) -> impl Iterator<Item = Line<'static>> {
    texts.into_iter().enumerate().map(|(column, text)| {
        let line = Line::from(text);
        if column < NUMBERS {
            line
        } else {
            line.right_aligned()
        }
    })
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyCode;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::app::tests::{app, press};
    use super::*;

    /// Returns the lines of a terminal of 80 columns and 24 lines.
    fn screen(app: &mut App) -> Vec<String> {
        narrow_screen(app, 80)
    }

    /// The same of a terminal with so many columns.
    fn narrow_screen(app: &mut App, columns: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, 24)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(columns.into());
        let line = |cells: &[ratatui::buffer::Cell]| {
            let text: String = cells.iter().map(|cell| cell.symbol()).collect();
            text.trim_end().to_owned()
        };
        lines.map(line).collect()
    }

    #[test]
    fn the_table_fits_into_80_columns() {
        let mut app = app();
        app.machines[2].name = "w".repeat(64);
        app.machines[2].state = "guest-panicked".to_owned();
        press(&mut app, &[KeyCode::Down, KeyCode::Enter]);
        let lines = screen(&mut app);
        let title = "vcpuctl top: 3 machines, 5 vCPUs; sorted by name";
        assert_eq!(lines[..2], [title, ""]);
        let rows = [
            "  MACHINE                  STATE          VCPUS PENDING   USE% STEAL% THROT% CPU",
            "+ db                       running          2/8       -  123.4    1.0      -",
            "- web-1                    running          2/8       1   10.0   92.0      -",
            "    vCPU 0                 present                         5.0   90.0      -   4",
            "    vCPU 1                 pending                         5.0    2.0      -   5",
            "+ wwwwwwwwwwwwwwwwwwwwwwww guest-panicked   1/8       -      -      -      -",
        ];
        assert_eq!(lines[2..8], rows);
        assert_eq!(lines[23], KEYS);
    }

    #[test]
    fn a_narrow_screen_has_fewer_columns() {
        let mut app = app();
        let rows = |app: &mut App, columns| narrow_screen(app, columns)[2..4].to_vec();
        let half = [
            "  MACHINE     STATE    VCPUS PENDING   USE% STEAL%",
            "+ db          running    2/8       -  123.4    1.0",
        ];
        assert_eq!(rows(&mut app, 50), half);
        assert_eq!(rows(&mut app, 20), ["  MACHINE", "+ db"]);
    }

    #[test]
    fn a_problem_is_above_the_last_sample() {
        let mut app = app();
        app.problem = Some("vcpud is not running".to_owned());
        let lines = screen(&mut app);
        assert_eq!(lines[1], "No new sample: vcpud is not running");
        assert!(lines[5].starts_with("+ db"), "{lines:#?}");
    }

    #[test]
    fn the_screen_says_why_it_is_empty() {
        let mut app = app();
        press(&mut app, &[KeyCode::Char('/'), KeyCode::Char('x')]);
        let lines = screen(&mut app);
        assert!(lines[0].ends_with("filter \"x\""), "{lines:#?}");
        assert!(lines[2].starts_with("No machine has \"x\""), "{lines:#?}");
        assert!(lines[23].starts_with("Filter: x_"), "{lines:#?}");
        app.machines.clear();
        assert!(screen(&mut app)[2].starts_with("vcpud has no machines."));
    }

    #[test]
    fn the_help_fits_into_80_columns() {
        let mut app = app();
        press(&mut app, &[KeyCode::Char('?')]);
        let lines = screen(&mut app);
        let shown = lines[2..].iter().take(HELP.lines().count());
        assert!(shown.eq(HELP.lines()), "{lines:#?}");
    }

    #[test]
    fn the_selected_row_is_always_visible() {
        let mut app = app();
        let machine = app.machines[0].clone();
        app.machines = (0..100)
            .map(|n| Machine {
                name: format!("m{n:02}"),
                ..machine.clone()
            })
            .collect();
        press(&mut app, &[KeyCode::End]);
        let lines = screen(&mut app);
        assert!(lines[22].starts_with("+ m99"), "{lines:#?}");
    }
}
