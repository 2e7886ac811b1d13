//! Every map, and the read-only configuration. Sizes of one entry here are
//! replaced by the configured ones when the program is loaded.

use core::{cell::UnsafeCell, mem::MaybeUninit};

use crate::{balance::nat::Translation, defence::frame::Fields, hand_over::HandOver, source::hide};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use edge_common::{
    abi::{
        self, Config, Counter, CounterCell, LimiterBucket, MAX_PROFILES, MacAddr, Profile,
        TableStat,
    },
    balance::{Backend, FlowBucket, VIP_WORDS},
    defence::{
        DEFENCE_WORDS, PORT_WORDS, Service, ServiceCounters, Target, TargetKey, options::Walk,
        reply::Segment, tags::TagBucket,
    },
    gcra::Limit,
    hash::Seed,
    nat,
    quic::IdKey,
    reason::Reason,
    table::{BITMAP24_WORDS, Bucket4, BucketW, LENGTHS_ENTRIES, LongLengths},
};

#[map]
pub static COUNTERS: PerCpuArray<CounterCell> =
    PerCpuArray::with_max_entries(abi::COUNTER_ENTRIES, 0);
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(abi::STATS_ENTRIES, 0);
#[map]
pub static SAMPLE_BUDGET: Array<u64> = Array::with_max_entries(Reason::COUNT as u32, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 12, 0);
#[map]
pub static HOSTS4: Array<Bucket4> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static HOSTS4_FILTER: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static WIDE: Array<BucketW> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static HOSTS6_FILTER: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static PREFIX_FILTER: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static BITMAP24: Array<u64> = Array::with_max_entries(BITMAP24_WORDS, BPF_F_MMAPABLE);
#[map]
pub static LENGTHS4: Array<u64> = Array::with_max_entries(LENGTHS_ENTRIES, BPF_F_MMAPABLE);
#[map]
pub static LENGTHS6: Array<u64> = Array::with_max_entries(LENGTHS_ENTRIES, BPF_F_MMAPABLE);
#[map]
pub static LENGTHS6_LONG: Array<LongLengths> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static LIMITER: Array<LimiterBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static ARP_BINDINGS: HashMap<u32, MacAddr> = HashMap::with_max_entries(1, 0);
#[map]
pub static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, BPF_F_MMAPABLE);
#[map]
pub static TARGETS: HashMap<TargetKey, Target> = HashMap::with_max_entries(1, 0);
#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static DEFENCE: Array<u64> = Array::with_max_entries(DEFENCE_WORDS, BPF_F_MMAPABLE);
#[map]
pub static VERIFIED: Array<TagBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static ATTEMPTS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static HANDSHAKES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static SKETCH: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static BALANCES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static RINGS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static BACKEND_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static FLOWS: Array<FlowBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static VIPS: Array<[u64; 2]> = Array::with_max_entries(VIP_WORDS, BPF_F_MMAPABLE);
#[map]
pub static SOURCES: Array<nat::Source> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static PORTS_IN_USE: Array<nat::PortSlot> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static BACKEND_SIGNALS: PerCpuArray<nat::Signals> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SERVER_IDS: HashMap<IdKey, u32> = HashMap::with_max_entries(1, 0);

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static STAGES: ProgramArray = ProgramArray::with_max_entries(abi::STAGES, 0);

/// What the programs hand to each other and to helpers, which the stack has no room for.
#[repr(C)]
pub struct Scratch {
    /// From one program to the next.
    pub hand_over: HandOver,
    /// The packet at hand.
    pub frame: Fields,
    /// The options of a SYN.
    pub walk: Walk,
    /// The IPv4 header, or the IPv6 one, as cookies are made from it.
    pub ip: [u32; 10],
    /// The TCP header, likewise.
    pub tcp: [u32; 6],
    /// `struct bpf_sock_tuple` of either family.
    pub tuple: [u32; 9],
    /// The segment to reply with.
    pub reply: Segment,
    /// The flow at hand, and what becomes of its packet.
    pub nat: Translation,
}

/// What [`crate::clock`] adds to the ticks, in nanoseconds. The only variable of
/// the program, so that it is all there is in `.bss`.
pub static CLOCK: Clock = Clock(UnsafeCell::new(0));

/// A word that one program writes and others read, whole.
pub struct Clock(UnsafeCell<u64>);

// SAFETY: it is only read and written whole, by volatile accesses of 8 aligned bytes.
unsafe impl Sync for Clock {}

impl Clock {
    #[inline(always)]
    pub fn get(&self) -> u64 {
        // SAFETY: valid and aligned; see above.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn set(&self, offset: u64) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(offset) };
    }
}

#[unsafe(no_mangle)]
static CONFIG: Config = Config::OFF;
#[unsafe(no_mangle)]
static PROFILES: [Profile; MAX_PROFILES] =
    [Profile::new([Limit::NONE; abi::LIMIT_KINDS]); MAX_PROFILES];

/// Reads a field of the configuration. Volatile, so that the compiler cannot
/// put in the value the object was built with; the verifier knows the real one
/// and removes what it makes unreachable.
macro_rules! config {
    ($($field:tt)+) => {
        // SAFETY: the field lies inside a static that nobody writes once the
        // program is loaded.
        unsafe { (&raw const (*$crate::maps::config_ptr()).$($field)+).read_volatile() }
    };
}
pub(crate) use config;

#[inline(always)]
pub fn config_ptr() -> *const Config {
    &raw const CONFIG
}

/// The secret of the hashes. Each call gives a pointer of which LLVM does not know
/// that it is the same: the words are read where they are needed, instead of all at
/// once to be kept on the stack until then.
#[inline(always)]
pub fn seed() -> &'static Seed {
    let at = hide(config_ptr() as u64) as *const Config;
    // SAFETY: it points to a static that nobody writes once the program is loaded.
    unsafe { &(*at).seed }
}

/// A zero of which only we know that it is one. Adding it to a number makes the
/// verifier forget what it knew of the number: it follows what comes behind a
/// parser once for every way through the parser, and behind this, once.
#[derive(Clone, Copy)]
pub struct Unknown(u32);

impl Unknown {
    /// From a time of [`crate::clock::now`], whose highest bit is 0 for the next
    /// centuries: 32 copies of that bit, of which the verifier knows that they are
    /// 0 or −1 (LLVM makes an arithmetic shift of them). To hide the bit from LLVM,
    /// so that it could be any number, made LLVM 22 spill a register it had not set.
    #[inline(always)]
    pub fn new(now: u64) -> Self {
        Self((now >> 63) as u32 * u32::MAX)
    }

    /// The same number.
    #[inline(always)]
    pub fn number(self, n: u32) -> u32 {
        n.wrapping_add(self.0)
    }
}

/// The same number, of which the verifier has forgotten everything: it goes to the
/// stack and back by an index that only we know to be 0, and of what is written like
/// that the verifier keeps nothing. `now` as for [`Unknown`].
#[inline(always)]
pub fn forget(now: u64, number: u64) -> u64 {
    let mut slots = MaybeUninit::<[u64; 2]>::uninit();
    let slots = slots.as_mut_ptr().cast::<u64>();
    let at = (hide(now) >> 63) as usize;
    // SAFETY: the index is 0 or 1. Words are set one by one, because LLVM makes a call of
    // `memset` from an array of zeros, which costs more than all the rest.
    unsafe {
        slots.write_volatile(0);
        slots.add(1).write_volatile(0);
        let slot = slots.add(at);
        slot.write_volatile(number);
        slot.read_volatile()
    }
}

/// The limit profile with this index; the default one when there is none.
#[inline(always)]
pub fn profile(index: u8) -> *const Profile {
    // MAX_PROFILES is a power of two: the mask is the bounds check the verifier sees.
    let index = index as usize & (MAX_PROFILES - 1);
    // SAFETY: the index is below the array's length.
    unsafe { (&raw const PROFILES).cast::<Profile>().add(index) }
}

/// Adds one to a table's statistic.
#[inline(always)]
pub fn count(stat: TableStat) {
    if let Some(n) = STATS.get_ptr_mut(stat as u32) {
        // SAFETY: the element belongs to this CPU, and programs of one CPU do
        // not interrupt each other here (softirq).
        unsafe { *n += 1 };
    }
}
