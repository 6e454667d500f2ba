//! Throttles and groups on a clock that the tests move: rates, bursts, fairness, changes, and that nobody is lost.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Instant as RealInstant;

use futures_util::{FutureExt, poll};
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::*;

const UNLIMITED: Limits = Limits::UNLIMITED;

fn limit(dimension: Dimension, avg: u64) -> Limits {
    burst(dimension, avg, 0, 0)
}

fn burst(dimension: Dimension, avg: u64, max: u64, seconds: u64) -> Limits {
    let mut rates = Rates::default();
    rates[dimension] = Rate { avg, max, max_length: Duration::from_secs(seconds) };
    Limits::new(rates, 0).unwrap()
}

/// Waits until a request may go, and returns how long that took.
async fn admit(throttle: &Throttle, direction: Direction, bytes: u64) -> Duration {
    match throttle.admit(direction, bytes, Moment::now()) {
        Some(waiting) => waiting.await,
        None => Duration::ZERO,
    }
}

/// A client that always has `depth` requests waiting. Requests take no time of their own.
struct Client {
    admitted: Arc<AtomicU64>,
    _requests: JoinSet<()>,
}

impl Client {
    fn start(throttle: &Arc<Throttle>, direction: Direction, bytes: u64, depth: usize) -> Client {
        let admitted = Arc::new(AtomicU64::new(0));
        let mut requests = JoinSet::new();
        for _ in 0..depth {
            let (throttle, admitted) = (throttle.clone(), admitted.clone());
            requests.spawn(async move {
                loop {
                    admit(&throttle, direction, bytes).await;
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Client { admitted, _requests: requests }
    }

    fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Requests admitted in the next `seconds`.
    async fn count(&self, seconds: u64) -> f64 {
        let before = self.admitted();
        sleep(Duration::from_secs(seconds)).await;
        (self.admitted() - before) as f64
    }
}

fn assert_close(actual: f64, expected: f64, percent: f64, what: &str) {
    assert!(
        (actual - expected).abs() <= expected * percent / 100.0,
        "{what}: {actual}, not {expected} ± {percent} %"
    );
}

#[tokio::test(start_paused = true)]
async fn the_rate_over_ten_seconds_is_within_three_percent_of_the_limit() {
    for (dimension, avg, direction, bytes, depth) in [
        (Dimension::IopsTotal, 10, Direction::Read, 4096, 4),
        (Dimension::IopsTotal, 2000, Direction::Read, 4096, 1),
        (Dimension::IopsTotal, 2000, Direction::Write, 4096, 32),
        (Dimension::IopsRead, 77, Direction::Read, 4096, 16),
        (Dimension::IopsWrite, 50_000, Direction::Write, 512, 64),
        (Dimension::BpsTotal, 10 << 20, Direction::Read, 4096, 8),
        (Dimension::BpsRead, 100 << 20, Direction::Read, 1 << 20, 8),
        (Dimension::BpsWrite, 100 << 20, Direction::Write, 65536, 1),
    ] {
        let throttle = Arc::new(Throttle::new(limit(dimension, avg), None));
        let client = Client::start(&throttle, direction, bytes, depth);
        let admitted = client.count(10).await;
        let units = if dimension.counts_operations() { admitted } else { admitted * bytes as f64 };
        assert_close(
            units,
            10.0 * avg as f64,
            3.0,
            &format!("{dimension:?} {avg} with {bytes} bytes × {depth}"),
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_limit_is_shared_by_reads_and_writes_and_a_part_leaves_the_other_alone() {
    let throttle = Arc::new(Throttle::new(limit(Dimension::IopsTotal, 1000), None));
    let reads = Client::start(&throttle, Direction::Read, 4096, 32);
    let writes = Client::start(&throttle, Direction::Write, 4096, 1);
    let (read, written) = tokio::join!(reads.count(10), writes.count(10));
    assert_close(read + written, 10_000.0, 3.0, "reads and writes together");
    assert!(written > 4000.0, "a queue of reads starves the writes: {written}");

    let throttle = Arc::new(Throttle::new(limit(Dimension::IopsWrite, 10), None));
    let _writes = Client::start(&throttle, Direction::Write, 4096, 8);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(throttle.status().waiting, 8);
    for _ in 0..10_000 {
        assert_eq!(admit(&throttle, Direction::Read, 4096).now_or_never(), Some(Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_runs_at_its_rate_for_its_length_after_an_idle_time_and_then_at_the_average() {
    let throttle = Arc::new(Throttle::new(burst(Dimension::IopsTotal, 200, 2000, 5), None));
    for round in ["first", "second"] {
        let client = Client::start(&throttle, Direction::Read, 4096, 16);
        assert_close(client.count(5).await, 10_000.0, 3.0, &format!("{round} burst"));
        // What leaked meanwhile prolongs it: 10000 / (2000 - 200) s.
        sleep(Duration::from_secs(1)).await;
        assert_close(client.count(10).await, 2000.0, 3.0, &format!("after the {round} burst"));
        drop(client);
        sleep(Duration::from_secs(51)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn large_requests_count_as_several_operations_when_iops_size_is_set() {
    let mut rates = Rates::default();
    rates[Dimension::IopsTotal].avg = 1000;
    let throttle = Arc::new(Throttle::new(Limits::new(rates, 64 << 10).unwrap(), None));
    let client = Client::start(&throttle, Direction::Read, 256 << 10, 8);
    assert_close(client.count(10).await, 2500.0, 3.0, "requests of four operations");
    drop(client);
    sleep(Duration::from_secs(1)).await;
    let client = Client::start(&throttle, Direction::Read, 4096, 8);
    assert_close(client.count(10).await, 10_000.0, 3.0, "requests of one operation");
}

#[tokio::test(start_paused = true)]
async fn members_of_a_group_get_equal_shares_whatever_their_queue_depth() {
    for (limits, rate, bytes, depths) in [
        (limit(Dimension::IopsTotal, 1000), 1000.0, 4096, [4, 40]),
        (limit(Dimension::IopsTotal, 20_000), 20_000.0, 4096, [1, 10]),
        (limit(Dimension::IopsTotal, 20_000), 20_000.0, 4096, [32, 320]),
        (limit(Dimension::BpsTotal, 100 << 20), (100u64 << 20) as f64 / 65536.0, 65536, [1, 10]),
    ] {
        let group = Group::new(limits);
        let [few, many] = depths.map(|depth| {
            let throttle = Arc::new(Throttle::new(UNLIMITED, Some(&group)));
            Client::start(&throttle, Direction::Read, bytes, depth)
        });
        sleep(Duration::from_secs(1)).await;
        let (few, many) = tokio::join!(few.count(10), many.count(10));
        assert_close(few + many, 10.0 * rate, 3.0, "the group");
        assert_close(few, 5.0 * rate, 5.0, &format!("the member with {depths:?}[0] requests"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_member_does_not_use_goes_to_the_others() {
    let group = Group::new(limit(Dimension::IopsTotal, 1000));
    let modest = Arc::new(Throttle::new(limit(Dimension::IopsTotal, 100), Some(&group)));
    let greedy = Arc::new(Throttle::new(UNLIMITED, Some(&group)));
    let modest = Client::start(&modest, Direction::Write, 4096, 8);
    let greedy = Client::start(&greedy, Direction::Write, 4096, 8);
    let (modest, greedy) = tokio::join!(modest.count(10), greedy.count(10));
    assert_close(modest, 1000.0, 3.0, "the member with limits of its own");
    assert_close(greedy, 9000.0, 3.0, "the other");
}

#[tokio::test(start_paused = true)]
async fn other_limits_hold_at_once_and_for_those_who_wait() {
    let throttle = Arc::new(Throttle::new(limit(Dimension::IopsTotal, 1), None));
    let mut waiting = JoinSet::new();
    for _ in 0..500 {
        let throttle = throttle.clone();
        waiting.spawn(async move { admit(&throttle, Direction::Write, 4096).await });
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(throttle.status().waiting, 499, "the first one went");
    let changed = Instant::now();
    throttle.set_limits(limit(Dimension::IopsTotal, 1000));
    assert_eq!(throttle.limits().rate(Dimension::IopsTotal).avg, 1000);
    sleep(Duration::from_millis(99)).await;
    // A tenth of a second's worth at once, and then the rate.
    assert_close(
        (499 - throttle.status().waiting) as f64,
        199.0,
        2.0,
        "admitted in the first tenth of a second",
    );
    assert_eq!(waiting.join_all().await.len(), 500);
    assert_close(changed.elapsed().as_secs_f64(), 0.4, 2.0, "the time for all of them");

    throttle.set_limits(limit(Dimension::IopsTotal, 1));
    let mut waiting = pin!(async {
        tokio::join!(admit(&throttle, Direction::Read, 1), admit(&throttle, Direction::Read, 1))
    });
    assert!(poll!(waiting.as_mut()).is_pending());
    throttle.set_limits(UNLIMITED);
    assert!(poll!(waiting.as_mut()).is_ready(), "without limits nobody waits");
}

#[tokio::test(start_paused = true)]
async fn a_group_changes_its_limits_for_all_members() {
    let group = Group::new(limit(Dimension::BpsTotal, 1));
    let members = [(); 3].map(|()| Throttle::new(UNLIMITED, Some(&group)));
    assert_eq!(admit(&members[0], Direction::Write, 1 << 20).now_or_never(), Some(Duration::ZERO));
    let mut waiting = members.each_ref().map(|member| Box::pin(admit(member, Direction::Read, 4096)));
    for one in &mut waiting {
        assert!(poll!(one).is_pending());
    }
    assert_eq!(group.waiting(), 3);
    group.set_limits(limit(Dimension::BpsTotal, 1 << 30));
    let changed = Instant::now();
    for one in &mut waiting {
        one.await;
    }
    assert!(changed.elapsed() < Duration::from_millis(10), "{:?}", changed.elapsed());
    assert_eq!(group.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_only_tries_takes_nothing_unless_all_limits_let_it_go() {
    let group = Group::new(limit(Dimension::IopsTotal, 10));
    let throttle = Throttle::new(limit(Dimension::IopsTotal, 1000), Some(&group));
    let tries = |throttle: &Throttle| throttle.try_admit(Direction::Read, 512, Moment::now());
    // Two go at once of ten a second: a bucket of one that is full lets one more go.
    let went = (0..500).filter(|_| tries(&throttle)).count();
    assert_eq!(went, 2);
    // The disk's own tokens are still there, all but those two.
    group.set_limits(UNLIMITED);
    let went = (0..500).filter(|_| tries(&throttle)).count();
    assert_eq!(went, 101 - 2);
    assert!(!tries(&throttle) && throttle.status().waiting == 0);
    // While somebody waits, nobody goes before.
    let mut first = pin!(admit(&throttle, Direction::Read, 512));
    assert!(poll!(first.as_mut()).is_pending());
    sleep(Duration::from_millis(1)).await;
    assert!(!tries(&throttle));
    first.await;
    sleep(Duration::from_millis(10)).await;
    assert!(tries(&throttle));
}

#[tokio::test(start_paused = true)]
async fn lifting_lets_one_disk_through_and_throttles_it_again_afterwards() {
    let group = Group::new(limit(Dimension::IopsTotal, 10));
    let drained = Throttle::new(limit(Dimension::IopsTotal, 1), Some(&group));
    let other = Throttle::new(UNLIMITED, Some(&group));
    while admit(&other, Direction::Read, 512).now_or_never().is_some() {}
    // One has passed its own limits and waits for the group's, the other waits for its own.
    let mut for_group = pin!(admit(&drained, Direction::Read, 512));
    let mut for_own = pin!(admit(&drained, Direction::Read, 512));
    let mut of_other = pin!(admit(&other, Direction::Read, 512));
    assert!(poll!(for_group.as_mut()).is_pending());
    assert!(poll!(for_own.as_mut()).is_pending());
    assert!(poll!(of_other.as_mut()).is_pending());
    assert_eq!((drained.status().waiting, group.waiting()), (2, 2));

    let first = drained.lift();
    let second = drained.lift();
    assert!(poll!(for_group.as_mut()).is_ready());
    assert!(poll!(for_own.as_mut()).is_ready());
    assert!(poll!(of_other.as_mut()).is_pending(), "the rest of the group is not concerned");
    drop(first);
    for _ in 0..100 {
        assert_eq!(admit(&drained, Direction::Write, 1 << 20).now_or_never(), Some(Duration::ZERO));
    }
    drop(second);
    assert_eq!(admit(&drained, Direction::Write, 512).now_or_never(), None, "throttled again, by the group");
}

#[tokio::test(start_paused = true)]
async fn waiting_is_counted_by_the_dimension_that_makes_a_request_wait() {
    let mut rates = Rates::default();
    rates[Dimension::IopsTotal].avg = 1000;
    rates[Dimension::BpsRead].avg = 1 << 20;
    let throttle = Throttle::new(Limits::new(rates, 0).unwrap(), None);
    admit(&throttle, Direction::Read, 2 << 20).await;
    let waited = admit(&throttle, Direction::Read, 512).await;
    assert_close(waited.as_secs_f64(), 1.9, 1.0, "the time to pay for two seconds' worth");
    let status = throttle.status();
    assert_eq!(status.waited[Dimension::BpsRead as usize], waited);
    assert_eq!(status.waited.iter().sum::<Duration>(), waited);
    assert_eq!(status.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_those_who_wait_is_not_moved_by_those_who_give_up() {
    let throttle = Arc::new(Throttle::new(limit(Dimension::IopsTotal, 10), None));
    while admit(&throttle, Direction::Read, 512).now_or_never().is_some() {}
    let mut last = Box::pin(admit(&throttle, Direction::Write, 512));
    let mut early: Vec<_> = (0..100).map(|_| Box::pin(admit(&throttle, Direction::Read, 512))).collect();
    for one in &mut early {
        assert!(poll!(one).is_pending());
    }
    assert!(poll!(&mut last).is_pending());
    early.clear();
    assert_eq!(throttle.status().waiting, 1);
    let since = Instant::now();
    last.await;
    assert!(since.elapsed() <= Duration::from_millis(101), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_ends_when_nobody_waits_any_more() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let throttle = Throttle::new(limit(Dimension::IopsTotal, 1), None);
    admit(&throttle, Direction::Read, 512).await;
    let mut gives_up = Box::pin(admit(&throttle, Direction::Read, 512));
    assert!(poll!(&mut gives_up).is_pending());
    assert_eq!(alive(), 1, "the dispatcher");
    settle().await;
    drop(gives_up);
    settle().await;
    assert_eq!(alive(), 0);
    admit(&throttle, Direction::Read, 512).await;
    assert_eq!(alive(), 0);
}

#[test]
fn a_throttle_outlives_the_runtime_that_it_was_first_used_in() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let throttle = Throttle::new(limit(Dimension::IopsTotal, 100), None);
    runtime().block_on(async {
        while admit(&throttle, Direction::Read, 512).now_or_never().is_some() {}
        assert!(poll!(pin!(admit(&throttle, Direction::Read, 512))).is_pending());
    });
    let began = RealInstant::now();
    runtime().block_on(async {
        for _ in 0..3 {
            admit(&throttle, Direction::Read, 512).await;
        }
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_nobody_is_forgotten_while_others_give_up_and_limits_change() {
    let group = Arc::new(Group::new(limit(Dimension::IopsTotal, 2_000)));
    let disks = [(); 3].map(|()| Arc::new(Throttle::new(limit(Dimension::BpsTotal, 40 << 20), Some(&group))));
    let mut patient = JoinSet::new();
    for number in 0..6000u64 {
        let throttle = disks[number as usize % 3].clone();
        let direction = if number % 7 < 4 { Direction::Read } else { Direction::Write };
        if number % 5 == 0 {
            tokio::spawn(tokio::time::timeout(Duration::from_micros(number), async move {
                admit(&throttle, direction, 4096).await
            }));
        } else {
            patient.spawn(async move { admit(&throttle, direction, 4096).await });
        }
        if number % 500 == 0 {
            group.set_limits(limit(Dimension::IopsTotal, 1_000 + number));
            drop(disks[0].lift());
        }
    }
    let all = tokio::time::timeout(Duration::from_secs(60), patient.join_all());
    let waited = all.await.expect("a request was forgotten");
    assert_eq!(waited.len(), 4800);
    assert!(waited.iter().any(|time| !time.is_zero()), "nobody had to wait");
    assert_eq!(group.waiting(), 0);
}

/// What a random test does.
#[derive(Debug, Clone)]
enum Step {
    Ask { member: usize, direction: Direction, bytes: u64 },
    GiveUp { which: usize },
    Pause { milliseconds: u64 },
    Limit { gate: usize, limits: Limits },
    Lift { member: usize },
    Restore,
}

fn small_limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        1 => Just(UNLIMITED),
        2 => (1u64..200).prop_map(|avg| limit(Dimension::IopsTotal, avg)),
        1 => (1u64..200).prop_map(|avg| limit(Dimension::IopsWrite, avg)),
        1 => (1000u64..200_000).prop_map(|avg| limit(Dimension::BpsRead, avg)),
        1 => (1u64..50, 1u64..5, 1u64..4).prop_map(|(avg, times, s)| burst(Dimension::IopsTotal, avg, avg * times, s)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0usize..3, any::<bool>(), 0u64..20_000).prop_map(|(member, read, bytes)| Step::Ask {
            member,
            direction: if read { Direction::Read } else { Direction::Write },
            bytes,
        }),
        4 => (0usize..1000).prop_map(|which| Step::GiveUp { which }),
        3 => (0u64..60).prop_map(|milliseconds| Step::Pause { milliseconds }),
        1 => (0usize..4, small_limits()).prop_map(|(gate, limits)| Step::Limit { gate, limits }),
        1 => (0usize..3).prop_map(|member| Step::Lift { member }),
        1 => Just(Step::Restore),
    ]
}

fn on_paused_clock<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

/// Lets every task that can go on do so: who was let go must have gone before the next one asks, or the order in which
/// tasks happen to run would be tested.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Three disks in a group; requests come, give up and wait while limits change and are lifted.
    #[test]
    fn everybody_who_stays_is_admitted_in_the_order_of_asking(
        own in prop::array::uniform3(small_limits()),
        shared in small_limits(),
        script in prop::collection::vec(step(), 1..150),
    ) {
        let (done, given_up, asked, waiting, tasks) = on_paused_clock(async {
            let group = Group::new(shared);
            let throttles = own.map(|limits| Arc::new(Throttle::new(limits, Some(&group))));
            let done = Arc::new(Mutex::new(Vec::new()));
            let mut requests = Vec::new();
            let mut lifted = Vec::new();
            for step in script {
                match step {
                    Step::Ask { member, direction, bytes } => {
                        let (throttle, done, id) = (throttles[member].clone(), done.clone(), requests.len());
                        requests.push(tokio::spawn(async move {
                            admit(&throttle, direction, bytes).await;
                            done.lock().unwrap_or_else(PoisonError::into_inner).push((member, direction, id));
                        }));
                    }
                    Step::GiveUp { .. } if requests.is_empty() => {}
                    Step::GiveUp { which } => requests[which % requests.len()].abort(),
                    Step::Pause { milliseconds } => sleep(Duration::from_millis(milliseconds)).await,
                    Step::Limit { gate: 3, limits } => group.set_limits(limits),
                    Step::Limit { gate, limits } => throttles[gate].set_limits(limits),
                    Step::Lift { member } => lifted.push(throttles[member].lift()),
                    Step::Restore => drop(lifted.pop()),
                }
                settle().await;
            }
            lifted.clear();
            let asked = requests.len();
            let mut given_up = 0;
            for request in requests {
                let ended = tokio::time::timeout(Duration::from_secs(100_000), request).await;
                given_up += usize::from(ended.expect("a request was forgotten").is_err());
            }
            settle().await;
            let waiting: usize = throttles.iter().map(|throttle| throttle.status().waiting).sum();
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            let done = std::mem::take(&mut *done.lock().unwrap_or_else(PoisonError::into_inner));
            (done, given_up, asked, waiting, tasks)
        });
        prop_assert_eq!(done.len() + given_up, asked);
        prop_assert_eq!((waiting, tasks), (0, 0), "somebody or something is still waiting");
        for member in 0..3 {
            for direction in [Direction::Read, Direction::Write] {
                let order: Vec<usize> =
                    done.iter().filter(|d| (d.0, d.1) == (member, direction)).map(|d| d.2).collect();
                prop_assert!(order.is_sorted(), "member {} {:?}: {:?}", member, direction, order);
            }
        }
    }

    /// Whatever the mix of sizes and depths, no more goes through than the bucket and the rate allow, and no less.
    #[test]
    fn no_token_is_made_up_or_lost(rate in 10_000u64..2_000_000, sizes in prop::collection::vec(2_000u64..200_000, 1..8)) {
        let largest = *sizes.iter().max().unwrap();
        let bytes = on_paused_clock(async {
            let throttle = Arc::new(Throttle::new(limit(Dimension::BpsTotal, rate), None));
            let clients: Vec<_> = sizes
                .iter()
                .map(|&size| (size, Client::start(&throttle, if size % 2 == 0 { Direction::Read } else { Direction::Write }, size, 2)))
                .collect();
            sleep(Duration::from_secs(10)).await;
            clients.iter().map(|(size, client)| client.admitted() * size).sum::<u64>()
        });
        // The bucket at the start, one request that goes when the bucket is just full, and a tick of the timer.
        prop_assert!(bytes <= 10 * rate + rate / 10 + largest + rate / 1000, "{} bytes", bytes);
        prop_assert!(bytes + rate / 500 >= 10 * rate + rate / 10, "{} bytes", bytes);
    }
}

/// Costs of a request that waits for nothing. Run with `--release --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn what_a_request_pays_that_waits_for_nothing() {
    let wide = |group: Option<&Group>| {
        let mut rates = Rates::default();
        rates[Dimension::IopsTotal].avg = LARGEST;
        rates[Dimension::BpsRead] =
            Rate { avg: LARGEST / 4, max: LARGEST / 2, max_length: Duration::from_secs(2) };
        Throttle::new(Limits::new(rates, 65536).unwrap(), group)
    };
    let group = Group::new(limit(Dimension::IopsTotal, LARGEST));
    for (what, throttle) in [
        ("unlimited", Throttle::new(UNLIMITED, None)),
        ("two limits, one with a burst", wide(None)),
        ("the same and a group", wide(Some(&group))),
    ] {
        const REQUESTS: u32 = 2_000_000;
        let began = RealInstant::now();
        for _ in 0..REQUESTS {
            let waited = admit(&throttle, Direction::Read, 4096).now_or_never();
            assert_eq!(waited, Some(Duration::ZERO));
        }
        println!("{what}: {:.1} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS));
    }
}
