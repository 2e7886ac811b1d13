//! A limit is kept by all CPUs together.

use std::{sync::Barrier, thread, time::Instant};

use edge_common::{
    abi::{LimitKind, Mode},
    reason::Reason,
};
use edge_tests::{
    cpu::pin_to,
    golden::v4,
    program::{Rig, Settings},
    test_run,
};
use edge_userspace::clock::coarse_tick_ns;

/// Packets of each CPU, in one test run: what happens between runs would hide
/// what is let through too much.
const PACKETS: u32 = 3_000_000;

/// Two CPUs send packets of one source, together more than a limit of so many a second and of a
/// burst of so many lets through. Gives how many passed, and how many were denied.
fn flood(rate: u64, burst: u64) -> (u64, u64) {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    assert!(cpus >= 2, "this needs two CPUs and sees {cpus}");
    let settings = Settings::enforced()
        .limit(0, LimitKind::Packets, rate, burst)
        .limit_mode(LimitKind::Packets, Mode::Enforce)
        .with(|config| config.tick_ns = coarse_tick_ns());
    let rig = Rig::load(&settings).expect("the program");
    let frame = v4().udp(8).build();
    let together = Barrier::new(2);
    let start = Instant::now();
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (rig, frame, together) = (rig.program(), &frame, &together);
            scope.spawn(move || {
                pin_to(cpu);
                together.wait();
                test_run::run(rig, frame, PACKETS).expect("a run");
            });
        }
    });
    let elapsed = start.elapsed().as_nanos() as u64;
    let counters = rig.counters().expect("counters");
    let passed = counters.ended(Reason::Pass).packets;
    let denied = counters.ended(Reason::LimitPackets).packets;
    assert_eq!(passed + denied, u64::from(2 * PACKETS));
    assert!(denied > 0, "nothing was denied: no flood");
    // The program's clock steps by a tick, so it may be one ahead of ours.
    let most = burst + (rate * (elapsed + coarse_tick_ns())).div_ceil(1_000_000_000);
    assert!(passed <= most, "{passed} passed, at most {most} may");
    (passed, denied)
}

#[test]
fn two_cpus_stay_within_one_limit() {
    let (passed, denied) = flood(200_000, 2_000);
    assert!(passed >= 2_000, "{passed} passed, not even the burst");
    assert!(denied > passed, "{denied} denied and {passed} passed");
}

#[test]
fn what_two_cpus_charge_ahead_is_within_the_limit_as_well() {
    // Half of the burst is charged ahead, in leases, and what follows packet by packet.
    let burst = 4_000_000;
    let (passed, _) = flood(1_000, burst);
    // At the end of a tick a lease may be lost to the other CPU, with less than it has been of use.
    assert!(
        passed > burst / 10 * 9,
        "{passed} passed of a burst of {burst}"
    );
}

#[test]
fn two_cpus_that_meet_in_a_small_burst_stay_within_it() {
    // Of few packets half are charged ahead while the other CPU takes what there is.
    for burst in [130, 131, 200, 500] {
        let (passed, _) = flood(1_000, burst);
        assert!(passed >= burst / 2, "{passed} passed of a burst of {burst}");
    }
}
