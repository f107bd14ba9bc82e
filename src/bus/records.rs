//! Where authorized calls are recorded.

use std::sync::Arc;

use crate::audit::{Audit, CallRecord};

/// The records of authorized calls, in the audit log.
#[derive(Clone, Debug)]
pub struct Records(Arc<Audit>);

impl Records {
    /// Returns the records in `audit`.
    pub fn new(audit: Arc<Audit>) -> Self {
        Self(audit)
    }

    /// Writes a record.
    pub(super) fn write(&self, record: &CallRecord<'_>) {
        self.0.write_call(record);
    }
}
