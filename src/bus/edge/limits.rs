//! The limits of the edge, in one place. `dbus/org.vcpud1.xml` documents them for callers.

use std::time::Duration;

/// Calls that change something, for each user. root can do worse than to make more.
pub(super) const CHANGES_OF_USER: usize = 64;
/// The same for all users but root, and for root.
pub(super) const CHANGES_OF_GROUP: usize = 512;
/// Free calls that the service answers at a time, for each user.
pub(super) const READS_OF_USER: usize = 2;
/// The same for all users but root, and for root.
pub(super) const READS_OF_GROUP: usize = 8;
/// Free calls that wait, for each user.
pub(super) const WAITING_OF_USER: usize = 512;
/// The same for all users but root, and for root.
pub(super) const WAITING_OF_GROUP: usize = 4096;
/// Calls that wait of a connection whose user is not known yet.
pub(super) const HELD_OF_SENDER: usize = 128;
/// Bytes of the calls that wait, for each user.
pub(super) const BYTES_OF_USER: usize = 2 << 20;
/// The same for all users but root, and for root.
pub(super) const BYTES_OF_GROUP: usize = 16 << 20;
/// Reply bytes that a user may leave unread. The service sends no more before the user reads some.
pub(super) const UNREAD_OF_USER: u64 = 16 << 20;
/// The same for all users but root: half of what the bus daemon holds for the service.
pub(super) const UNREAD_OF_GROUP: u64 = 64 << 20;
/// Unread reply bytes from which on the bus daemon is asked how many it still holds for a user.
pub(super) const UNREAD_UNASKED: u64 = 2 << 20;
/// A reply that the bus daemon takes longer to read delays the replies to all others, because they
/// pass one after the other.
pub(super) const SLOW: Duration = Duration::from_millis(20);
/// The next call of its user is then taken after so many times that time, so one user delays the
/// others little of the time.
pub(super) const PAUSE_FACTOR: u32 = 30;
/// Longest such pause.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Senders that are known. One that has nothing under way is forgotten for another.
pub(super) const SENDERS: usize = 4096;
/// Longest call of a member that takes no list, in bytes.
pub(super) const MAX_CALL: usize = 64 << 10;
/// Longest call of a member that takes a list: twice what [`MAX_VCPUS`](crate::inventory::MAX_VCPUS)
/// numbers take, in bytes.
pub(super) const MAX_LIST_CALL: usize = 128 << 10;
/// Errors that wait to be sent. More are dropped: a caller that fast does not read them.
pub(super) const REFUSALS: usize = 1024;
/// Connections whose user is not known yet.
pub(super) const STRANGERS: usize = 4096;
/// Longest reply that is read, in bytes. The service asks for nothing that is longer.
pub(super) const MAX_RECEIVED_REPLY: usize = 1 << 20;
/// Longest signal that is read, in bytes.
pub(super) const MAX_SIGNAL: usize = 64 << 10;
/// Longest header that is kept of a message that is too long, in bytes.
pub(super) const MAX_HEADER: usize = 64 << 10;
/// How long the bus may take no byte. Then the connection is given up, and another is made.
pub(super) const STALL: Duration = Duration::from_secs(20);
/// Longest reply of a method that returns no list, in bytes.
pub(super) const MAX_REPLY: usize = 1 << 20;
/// Longest reply of a method that returns a list, in bytes. A bus daemon ends a connection that
/// sends more than 32 MiB (`max_message_size` in `dbus-daemon(1)`).
pub(super) const MAX_LIST_REPLY: usize = 30 << 20;
