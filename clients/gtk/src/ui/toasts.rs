//! Owns the toasts. Each is about one machine. It must not decide what they show.

use std::cell::RefCell;
use std::rc::Rc;

use adw::prelude::*;
use gtk::glib::markup_escape_text;

use super::dialogs;
use crate::model::failure::Failure;
use crate::model::message::Path;

/// The toasts of the window.
pub(super) struct Toasts {
    overlay: adw::ToastOverlay,
    /// Those that the user has not seen to the end.
    shown: Rc<RefCell<Vec<Shown>>>,
}

struct Shown {
    path: Path,
    is_refusal: bool,
    toast: adw::Toast,
}

impl Toasts {
    pub(super) fn new(child: &gtk::Stack) -> Self {
        let overlay = adw::ToastOverlay::new();
        overlay.set_child(Some(child));
        let shown = Rc::default();
        Self { overlay, shown }
    }

    pub(super) fn widget(&self) -> &adw::ToastOverlay {
        &self.overlay
    }

    /// Shows the refusals of a machine instead of its previous ones.
    pub(super) fn show_refusal(&self, path: Path, failure: &Failure) {
        self.end(|shown| shown.is_refusal && shown.path == path);
        self.add(path, true, self.failure(failure));
    }

    /// Shows a failure, with a button for its complete text.
    pub(super) fn show_failure(&self, path: Path, failure: &Failure) {
        self.add(path, false, self.failure(failure));
    }

    /// Shows a text for a short time.
    pub(super) fn show_note(&self, path: Path, text: &str) {
        self.add(path, false, adw::Toast::new(&markup_escape_text(text)));
    }

    /// Ends the toasts of a machine, because they are about the past.
    pub(super) fn dismiss(&self, path: &str) {
        self.end(|shown| shown.path == path);
    }

    fn failure(&self, failure: &Failure) -> adw::Toast {
        let toast = adw::Toast::builder()
            .title(markup_escape_text(&failure.title))
            .button_label("_Details")
            .timeout(10)
            .priority(adw::ToastPriority::High)
            .build();
        let (overlay, failure) = (self.overlay.downgrade(), failure.clone());
        toast.connect_button_clicked(move |_| {
            let root = overlay.upgrade().and_then(|overlay| overlay.root());
            if let Some(window) = root.and_downcast_ref::<gtk::Window>() {
                dialogs::open_failure(window, &failure);
            }
        });
        toast
    }

    fn add(&self, path: Path, is_refusal: bool, toast: adw::Toast) {
        let all = Rc::downgrade(&self.shown);
        toast.connect_dismissed(move |toast| {
            if let Some(all) = all.upgrade() {
                all.borrow_mut().retain(|shown| shown.toast != *toast);
            }
        });
        self.shown.borrow_mut().push(Shown {
            path,
            is_refusal,
            toast: toast.clone(),
        });
        self.overlay.add_toast(toast);
    }

    fn end(&self, is_ended: impl Fn(&Shown) -> bool) {
        // A toast that ends calls back.
        let (ended, stay): (Vec<Shown>, Vec<Shown>) =
            self.shown.take().into_iter().partition(is_ended);
        *self.shown.borrow_mut() = stay;
        for shown in ended {
            shown.toast.dismiss();
        }
    }
}
