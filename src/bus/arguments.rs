//! The arguments of methods: lists of vCPUs, and the errors for values that a method does not take.

use std::collections::BTreeSet;

use super::error::Error;
use crate::ids::{MAX_VCPUS, VcpuId};
use crate::placement::VcpuList;

/// Returns the text of `vcpus` for rules and records, such as `0-3,8`.
pub(super) fn shown(vcpus: &BTreeSet<VcpuId>) -> String {
    vcpus.iter().copied().collect::<VcpuList>().to_string()
}

/// Returns the set of `vcpus`, or an error if it is longer than that of any machine.
pub(super) fn list(vcpus: Vec<u32>) -> Result<BTreeSet<VcpuId>, Error> {
    match vcpus.len() {
        0..=MAX_LIST => Ok(vcpus.into_iter().map(VcpuId).collect()),
        length => Err(Error::LimitExceeded(format!(
            "{length} vCPUs in one call; the limit is {MAX_LIST}"
        ))),
    }
}

/// As many as the inventory believes that there can be.
const MAX_LIST: usize = MAX_VCPUS as usize;

/// Returns the error for a value.
pub(super) fn invalid(error: impl std::fmt::Display) -> Error {
    Error::InvalidArgs(error.to_string())
}

/// Returns the error for a list of host CPUs.
pub(super) fn invalid_list(error: impl std::fmt::Display) -> Error {
    Error::InvalidCpuList(error.to_string())
}
