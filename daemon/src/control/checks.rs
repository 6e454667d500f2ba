//! Checks of exports that somebody asks for: can they be read?
//!
//! Invariant: of each export one check at most is under way, however many ask and whether or not they wait for it; it goes
//! on without them, and nobody waits for that of another export.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long what a check found is good for: whoever may only look must not keep a disk at work.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How long somebody waits for a check. It goes on, and who asks next has what it finds.
const WITHIN: Duration = Duration::from_secs(5);

/// What a check found, or what went wrong in words.
type Outcome = Result<(), String>;

/// A check: when it ended and what it found, if it has.
type Check = watch::Receiver<Option<(Instant, Outcome)>>;

/// The last check of each export.
#[derive(Debug, Default)]
pub struct Checks(Mutex<HashMap<String, Check>>);

impl Checks {
    /// What the check of an export finds that is under way, or that has just been made; otherwise `check` is one.
    ///
    /// # Errors
    /// What it found wrong, or that it takes long.
    pub async fn ask<F>(&self, export: &str, check: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut found = self.last(export, check);
        let known = timeout(WITHIN, found.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => known.as_ref().map(|(_, outcome)| outcome.clone()).expect("it was waited for"),
            Ok(Err(_)) => Err(format!("export {export}: the check was cut short")),
            Err(_) => Err(format!("export {export}: it has not been read within {} s", WITHIN.as_secs())),
        }
    }

    fn last<F>(&self, export: &str, check: impl FnOnce() -> F) -> Check
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = checks.get(export) {
            let under_way = last.has_changed().is_ok();
            let fresh = last.borrow().as_ref().is_some_and(|(at, _)| at.elapsed() < GOOD_FOR);
            if under_way || fresh {
                return last.clone();
            }
        }
        let (found, last) = watch::channel(None);
        let check = check();
        tokio::spawn(async move {
            let outcome = check.await;
            found.send_replace(Some((Instant::now(), outcome)));
        });
        checks.insert(export.to_owned(), last.clone());
        last
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::poll;
    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_check_serves_all_who_ask_and_goes_on_when_they_hang_up() {
        let (checks, made) = (Checks::default(), Arc::new(AtomicUsize::new(0)));
        let (end, ended) = oneshot::channel();
        let mut ended = Some(ended);
        let mut check = || {
            made.fetch_add(1, Ordering::Relaxed);
            let ended = ended.take();
            async move {
                match ended {
                    Some(ended) => ended.await.expect("told"),
                    None => Ok(()),
                }
            }
        };
        for _ in 0..10 {
            let mut asking = Box::pin(checks.ask("hung", &mut check));
            assert!(poll!(asking.as_mut()).is_pending());
        }
        checks.ask("other", async || Ok(())).await.expect("it does not wait for the first");
        let late = checks.ask("hung", &mut check).await.expect_err("not within its time");
        assert!(late.contains("5 s"), "{late}");
        end.send(Err("broken".to_owned())).expect("it goes on");
        assert_eq!(checks.ask("hung", &mut check).await, Err("broken".to_owned()));
        assert_eq!(made.load(Ordering::Relaxed), 1, "one for all of them");
        advance(GOOD_FOR).await;
        let mut again = || {
            made.fetch_add(1, Ordering::Relaxed);
            async { Ok(()) }
        };
        assert_eq!(checks.ask("hung", &mut again).await, Ok(()));
        assert_eq!(checks.ask("hung", &mut again).await, Ok(()));
        assert_eq!(made.load(Ordering::Relaxed), 2, "what it found is good for a while");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_panics_is_told_and_the_next_is_made() {
        let checks = Checks::default();
        let cut = checks.ask("disk", || async { panic!("a fault") }).await.expect_err("cut short");
        assert!(cut.contains("cut short"), "{cut}");
        sleep(Duration::from_millis(1)).await;
        assert_eq!(checks.ask("disk", || async { Ok(()) }).await, Ok(()));
        let never = checks.ask("slow", pending::<Outcome>).await.expect_err("late");
        assert!(never.contains("not been read"), "{never}");
    }
}
