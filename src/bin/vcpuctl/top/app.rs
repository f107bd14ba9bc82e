//! The state of the live mode, and the changes that keys make. Pure.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;

use super::rates::{self, Machine};
use super::rows::{Choice, Key, Row};
use super::sample::Sample;
use crate::cli::Sort;

/// The number of rows that the keys "Page Up" and "Page Down" move.
const PAGE: usize = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Table,
    /// Keys change the filter.
    Filter,
    Help,
}

#[derive(Default)]
pub(crate) struct App {
    pub mode: Mode,
    pub choice: Choice,
    pub machines: Vec<Machine>,
    /// Why the last sample failed.
    pub problem: Option<String>,
    /// The first visible row, and the selected one.
    pub table: TableState,
    selected: Option<Key>,
    before: Sample,
}

impl App {
    pub(crate) fn new(choice: Choice, first: Sample) -> Self {
        let mut app = Self {
            choice,
            ..Self::default()
        };
        app.take(Ok(first));
        app
    }

    /// Takes a new sample, or the reason why the service did not return one. The machines then stay.
    pub(crate) fn take(&mut self, sample: Result<Sample, String>) {
        match sample {
            Ok(sample) => {
                self.machines = rates::machines(&self.before, &sample);
                self.before = sample;
                self.problem = None;
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// Returns the rows, and moves the selection to the row that it is now.
    pub(crate) fn rows(&mut self) -> Vec<Row> {
        let rows = self.choice.rows(&self.machines);
        let index = rows
            .iter()
            .position(|row| Some(&row.key) == self.selected.as_ref());
        self.table.select(index.or((!rows.is_empty()).then_some(0)));
        rows
    }

    /// Does what a key means. Returns whether the program goes on.
    pub(crate) fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code != KeyCode::Char('c');
        }
        match self.mode {
            Mode::Table => return self.press_in_table(key.code),
            Mode::Help => self.mode = Mode::Table,
            Mode::Filter => match key.code {
                KeyCode::Enter => self.mode = Mode::Table,
                KeyCode::Esc => {
                    self.choice.filter.clear();
                    self.mode = Mode::Table;
                }
                KeyCode::Backspace => drop(self.choice.filter.pop()),
                KeyCode::Char(character) => self.choice.filter.push(character),
                _ => {}
            },
        }
        true
    }

    fn press_in_table(&mut self, key: KeyCode) -> bool {
        match key {
            KeyCode::Char('q') => return false,
            KeyCode::Char('h' | '?') => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Esc => self.choice.filter.clear(),
            KeyCode::Char('n') => self.choice.sort = Sort::Name,
            KeyCode::Char('u') => self.choice.sort = Sort::Use,
            KeyCode::Char('s') => self.choice.sort = Sort::Steal,
            KeyCode::Char('t') => self.choice.sort = Sort::Throttled,
            KeyCode::Char('p') => self.choice.sort = Sort::Pending,
            KeyCode::Char('r') => self.choice.is_reversed = !self.choice.is_reversed,
            KeyCode::Char('e') => self.choice.expanded.toggle_all(),
            KeyCode::Enter | KeyCode::Char(' ') => self.expand(|is_expanded| !is_expanded),
            KeyCode::Right => self.expand(|_| true),
            KeyCode::Left => self.expand(|_| false),
            KeyCode::Up => self.select(|index| index.saturating_sub(1)),
            KeyCode::Down => self.select(|index| index + 1),
            KeyCode::PageUp => self.select(|index| index.saturating_sub(PAGE)),
            KeyCode::PageDown => self.select(|index| index + PAGE),
            KeyCode::Home => self.select(|_| 0),
            KeyCode::End => self.select(|_| usize::MAX),
            _ => {}
        }
        true
    }

    fn select(&mut self, index: impl FnOnce(usize) -> usize) {
        let rows = self.rows();
        let index = index(self.table.selected().unwrap_or_default());
        let row = rows.get(index).or(rows.last());
        self.selected = row.map(|row| row.key.clone());
    }

    /// Expands or collapses the machine of the selected row, which is then the selected one.
    fn expand(&mut self, change: impl FnOnce(bool) -> bool) {
        let rows = self.rows();
        if let Some(row) = self.table.selected().and_then(|index| rows.get(index)) {
            let machine = row.key.0.clone();
            let expanded = &mut self.choice.expanded;
            expanded.set(&machine, change(expanded.has(&machine)));
            self.selected = Some((machine, None));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::rows::tests::three;
    use super::*;

    pub(crate) fn app() -> App {
        App {
            machines: three(),
            ..App::default()
        }
    }

    pub(crate) fn press(app: &mut App, keys: &[KeyCode]) {
        for key in keys {
            assert!(app.press(KeyEvent::from(*key)), "{key:?}");
        }
    }

    fn selected(app: &mut App) -> String {
        let rows = app.rows();
        rows[app.table.selected().unwrap()].cells[0]
            .trim()
            .to_owned()
    }

    #[test]
    fn the_selection_follows_its_row() {
        let mut app = app();
        assert_eq!(selected(&mut app), "db");
        press(&mut app, &[KeyCode::Down, KeyCode::Char('s')]);
        assert_eq!(selected(&mut app), "web-1");
        press(&mut app, &[KeyCode::Enter, KeyCode::Down, KeyCode::Down]);
        assert_eq!(selected(&mut app), "vCPU 1");
        press(&mut app, &[KeyCode::Left]);
        assert_eq!(selected(&mut app), "web-1");
        assert_eq!(app.rows().len(), 3);
        press(&mut app, &[KeyCode::End, KeyCode::Down]);
        assert_eq!(selected(&mut app), "web-2");
        press(&mut app, &[KeyCode::Char('r')]);
        assert_eq!(selected(&mut app), "web-2");
        assert_eq!(app.table.selected(), Some(0));
        press(&mut app, &[KeyCode::Char('r')]);
        press(&mut app, &[KeyCode::PageUp]);
        assert_eq!(selected(&mut app), "web-1");
        app.machines.clear();
        press(&mut app, &[KeyCode::Down, KeyCode::Enter, KeyCode::Up]);
        assert_eq!(app.rows(), []);
    }

    #[test]
    fn keys_of_the_filter_are_text() {
        let mut app = app();
        let keys = ['/', 'w', 'q', 'x'].map(KeyCode::Char);
        press(&mut app, &keys);
        press(&mut app, &[KeyCode::Backspace, KeyCode::Backspace]);
        assert_eq!(app.rows().len(), 2);
        assert_eq!(app.choice.filter, "w");
        press(&mut app, &[KeyCode::Enter]);
        assert_eq!((app.mode, app.rows().len()), (Mode::Table, 2));
        press(&mut app, &[KeyCode::Esc]);
        assert_eq!(app.rows().len(), 3);
    }

    #[test]
    fn q_and_ctrl_c_end_the_program() {
        let mut app = app();
        assert!(!app.press(KeyCode::Char('q').into()));
        press(&mut app, &[KeyCode::Char('h')]);
        assert_eq!(app.mode, Mode::Help);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(!app.press(interrupt));
        press(&mut app, &[KeyCode::Char('q')]);
        assert_eq!(app.mode, Mode::Table, "a key closes the help");
    }

    #[test]
    fn a_failed_sample_keeps_the_machines() {
        let mut app = app();
        app.take(Err("no service".to_owned()));
        assert_eq!(app.machines.len(), 3);
        assert!(app.problem.is_some());
        app.take(Ok(Sample::new()));
        assert_eq!((app.machines.len(), &app.problem), (0, &None));
    }
}
