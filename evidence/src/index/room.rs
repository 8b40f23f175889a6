//! How much of a tar is listed: every list of one tar ends behind the same member.

use super::Limits;
use crate::tar::Member;

/// What is left of [`Limits::members`] and [`Limits::metadata`].
pub(super) struct Room {
    members: u64,
    metadata: u64,
    over: bool,
}

impl Room {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            members: limits.members,
            metadata: limits.metadata,
            over: false,
        }
    }

    /// Whether another member may be listed. Once one was left out, all behind it are: a list with
    /// holes deceives.
    pub(super) fn take(&mut self, member: &Member) -> bool {
        let attributes = member
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let bytes = member.path.len()
            + member.link.as_ref().map_or(0, Vec::len)
            + member.user.len()
            + member.group.len()
            + attributes.sum::<usize>();
        let left = self
            .members
            .checked_sub(1)
            .zip(self.metadata.checked_sub(bytes as u64));
        match left {
            Some((members, metadata)) if !self.over => {
                (self.members, self.metadata) = (members, metadata);
                true
            }
            _ => {
                self.over = true;
                false
            }
        }
    }
}
