//! The loop of the live mode.

use std::io::{self, IsTerminal, stdout};

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::app::App;
use super::rows::Choice;
use super::source::Source;
use super::view;
use crate::cli::Subject;
use crate::failure::Failure;

/// The terminal in the state that the live mode needs. It gets its previous state back when this is dropped,
/// and when the program panics.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows samples until the user quits, or until `count` samples were shown.
///
/// # Errors
/// The standard output is not a terminal, the first sample fails, or the terminal does.
pub(crate) async fn run(
    mut source: Source,
    choice: Choice,
    count: Option<u64>,
) -> Result<(), Failure> {
    if !stdout().is_terminal() {
        return Err(Failure::NoTerminal);
    }
    let mut app = App::new(choice, source.next().await?);
    let (sender, mut samples) = mpsc::channel(1);
    let mut sampling = JoinSet::new();
    // A task of its own, so that keys work while the service takes its time.
    sampling.spawn(async move { while sender.send(source.next().await).await.is_ok() {} });
    let mut end = Box::pin(signals()?);
    let mut screen = Screen::open()?;
    let mut events = EventStream::new();
    let mut left = count;
    while left != Some(0) {
        screen.0.draw(|frame| view::draw(frame, &mut app))?;
        tokio::select! {
            event = events.next() => match event.transpose()? {
                Some(Event::Key(key)) if app.press(key) => {}
                Some(Event::Key(_)) | None => break,
                Some(_) => {}
            },
            Some(sample) = samples.recv() => {
                if sample.is_ok() {
                    left = left.map(|left| left - 1);
                }
                app.take(sample.map_err(|failure| failure.text(&Subject::default())));
            }
            () = &mut end => break,
        }
    }
    Ok(())
}

/// Returns a future that waits for a signal to end the program.
fn signals() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
