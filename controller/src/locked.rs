//! Mutexes whose content is whole after every statement.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it, also after a panic of somebody who held it: that can't have left anything half-done.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
