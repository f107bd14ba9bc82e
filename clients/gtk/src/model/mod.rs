//! Owns what the application knows and shows: from dictionaries of D-Bus to texts and numbers. Pure: it must not use
//! GTK, a connection or a clock.

pub(crate) mod bandwidth;
pub(crate) mod choice;
pub(crate) mod dict;
pub(crate) mod failure;
pub(crate) mod fleet;
pub(crate) mod identity;
pub(crate) mod machine;
pub(crate) mod message;
pub(crate) mod numbers;
pub(crate) mod plan;
pub(crate) mod scaling;
pub(crate) mod sentence;
pub(crate) mod usage;
pub(crate) mod vcpu;
