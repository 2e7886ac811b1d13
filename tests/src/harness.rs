//! The harness: measures what programs cost a packet, each less the harness
//! itself, with a source that varies as the row asks for.

use std::{
    env, fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Map, MapData},
    programs::{
        Xdp,
        xdp::{XdpLink, XdpMode},
    },
};
use edge_common::{
    addr::Family,
    bench::{
        Drive, LISTED, Pace, SUM4_AT, SYN4_LEN, SYN6_LEN, Space, Syn, TCP_SUM_AT, TCP4_AT, TCP6_AT,
        maps,
    },
    header::Sum,
    parse::proto,
};
use edge_userspace::memory::Region;

/// XDP's return value for a harness that found no program to run.
const ABORTED: u32 = 0;

/// Packets before a contender is measured, so that it finds its own state in the cache.
const WARM_UP: u32 = 2_000;

/// Which sources packets have.
#[derive(Clone, Copy, Debug)]
pub enum Sources<'a> {
    /// The same one in every packet.
    Same(Space, u64),
    /// Every packet another one, starting over after so many.
    Cycle(Space, u64),
    /// Every packet another one that has not been seen before.
    Fresh(Space),
    /// Those given, in order: IPv4 addresses, or upper halves of IPv6 addresses.
    Listed(&'a [u64]),
}

/// Numbers from here on are those of no list.
const FRESH: u64 = 1 << 40;

impl Sources<'_> {
    fn drive(self) -> Drive {
        let computed = |space, first, count| Drive {
            count,
            first,
            space,
            ..Drive::default()
        };
        match self {
            Self::Same(space, number) => computed(space, number, 1),
            Self::Cycle(space, count) => computed(space, 0, count),
            Self::Fresh(space) => computed(space, FRESH, u64::MAX),
            Self::Listed(_) => Drive {
                count: u64::from(LISTED),
                listed: 1,
                ..Drive::default()
            },
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Times that each contender is measured, in turn.
    pub rounds: u32,
    /// Packets each time.
    pub packets: u32,
}

/// Nanoseconds a packet, harness included, of every round.
#[derive(Clone, Debug)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// The best round: what the program takes when nobody disturbs it.
    pub fn best(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The round in the middle.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// The loaded harness and the programs that come with it.
pub struct Harness {
    ebpf: Ebpf,
    drive: Region,
    sources: Region,
    syn: Region,
    pace: Region,
    to: Region,
    under_test: Map,
    linear_under_test: Map,
    /// Entries of [`maps::LINES4`] and [`maps::LINES6`].
    lines: u32,
}

/// What a harness program does before the program under test sees a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Putting {
    /// It puts in the next source.
    Source,
    /// The same for programs that know no frames of several buffers.
    LinearSource,
    /// It makes the SYN of [`Harness::put_syn`] with the next source.
    Syn,
    /// The same with what else has 20 bytes of options, where the frame began before the
    /// program under test moved its head.
    Moved,
}

/// Names the directory of the eBPF objects.
const DIRECTORY_VAR: &str = "EDGE_BPF_DIR";

/// The object that the harness is loaded from, where `cargo xtask build` puts it.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn object() -> PathBuf {
    let directory = env::var_os(DIRECTORY_VAR).map_or_else(
        || {
            // A test's own path is DIR/PROFILE/deps/NAME, the objects' DIR/bpf.
            let test = env::current_exe().expect("the path of the test");
            test.ancestors().nth(3).expect("three levels").join("bpf")
        },
        PathBuf::from,
    );
    let object = directory.join("edge-bench.o");
    assert!(
        object.is_file(),
        "{} is not built: cargo xtask build",
        object.display()
    );
    object
}

impl Harness {
    /// Loads the harness, with room for so many entries in each of the plain maps.
    pub fn load(object: &Path, hosts: u32, prefixes: u32) -> Result<Self> {
        let bytes = fs::read(object)
            .with_context(|| format!("cannot read {}: cargo xtask build", object.display()))?;
        // As many buckets of four as Edge has for so many hosts, which fill three fifths of them.
        let lines = (hosts / 12 * 5).max(1);
        let mut loader = EbpfLoader::new();
        for (name, entries) in [
            (maps::LINES4, lines),
            (maps::LINES6, lines),
            (maps::HASH4, hosts),
            (maps::HASH6, hosts),
            (maps::LPM4, prefixes),
            (maps::LPM6, prefixes),
        ] {
            loader.map_max_entries(name, entries.max(1));
        }
        let mut ebpf = loader.load(&bytes).context("the harness does not load")?;
        for (name, program) in ebpf.programs_mut() {
            <&mut Xdp>::try_from(program)?
                .load()
                .with_context(|| format!("the harness program {name} does not load"))?;
        }
        let drive = region(&ebpf, maps::DRIVE, size_of::<Drive>())?;
        let sources = region(&ebpf, maps::SOURCES, LISTED as usize * 8)?;
        let syn = region(&ebpf, maps::SYN, size_of::<Syn>())?;
        let pace = region(&ebpf, maps::PACE, size_of::<Pace>())?;
        let to = region(&ebpf, maps::TO, size_of::<u64>())?;
        let mut array = |name| {
            ebpf.take_map(name)
                .with_context(|| format!("the harness has no program array {name}"))
        };
        let under_test = array(maps::UNDER_TEST)?;
        let linear_under_test = array(maps::UNDER_TEST_LINEAR)?;
        Ok(Self {
            ebpf,
            drive,
            sources,
            syn,
            pace,
            to,
            under_test,
            linear_under_test,
            lines,
        })
    }

    /// A map of the harness, to be filled.
    pub fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the harness has no map {name}"))
    }

    /// A program of the harness.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("the harness has no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// A descriptor of a program of the harness, to be measured.
    pub fn contender(&mut self, name: &str) -> Result<aya::programs::ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    /// Measures the contenders in turn, so that what else happens on the machine
    /// befalls all of them.
    pub fn measure(
        &mut self,
        family: Family,
        putting: Putting,
        sources: Sources<'_>,
        frame: &[u8],
        contenders: &[BorrowedFd<'_>],
        effort: Effort,
    ) -> Result<Vec<Samples>> {
        self.start_over(sources);
        let name = match (putting, family) {
            (Putting::Source, Family::V4) => "harness4",
            (Putting::Source, Family::V6) => "harness6",
            (Putting::LinearSource, Family::V4) => "harness_linear4",
            (Putting::LinearSource, Family::V6) => "harness_linear6",
            (Putting::Syn, Family::V4) => "harness_syn4",
            (Putting::Syn, Family::V6) => "harness_syn6",
            (Putting::Moved, Family::V4) => "harness_moved4",
            (Putting::Moved, Family::V6) => "harness_moved6",
        };
        // The kernel patches the way into a program when a test run starts that is
        // of a program in use nowhere, and again when it ends: 100 times what is to
        // be measured. So the harness is in use, where no packet comes.
        let link = self.program(name)?.attach("lo", XdpMode::Skb)?;
        let mut all = vec![Vec::new(); contenders.len()];
        for _ in 0..effort.rounds {
            for (fd, samples) in contenders.iter().zip(&mut all) {
                let array = match putting {
                    Putting::LinearSource => &self.linear_under_test,
                    _ => &self.under_test,
                };
                set_program(array, *fd)?;
                let program = self.program(name)?;
                run(program, frame, WARM_UP)?;
                let took = run(program, frame, effort.packets)?;
                samples.push(took.as_secs_f64() * 1e9 / f64::from(effort.packets));
            }
        }
        self.program(name)?.detach(link)?;
        for samples in &mut all {
            samples.sort_by(f64::total_cmp);
        }
        Ok(all.into_iter().map(Samples).collect())
    }

    /// Lets packets have these sources from now on, from the first one on.
    pub fn start_over(&self, sources: Sources<'_>) {
        if let Sources::Listed(list) = sources {
            for (word, source) in self.sources.u64s().iter().zip(list.iter().cycle()) {
                word.store(*source, Relaxed);
            }
        }
        let drive = sources.drive();
        let words = [
            drive.next,
            drive.count,
            drive.first,
            drive.space.base,
            drive.space.shift,
            drive.listed,
            self.lines.into(),
        ];
        for (at, word) in self.drive.u64s().iter().zip(words) {
            at.store(word, Relaxed);
        }
    }
}

/// What a flood has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flooded {
    /// SYNs that were sent.
    pub sent: u64,
    /// Those that were answered by a SYN-ACK.
    pub answered: u64,
    /// Other answers.
    pub other: u64,
}

/// Words of a [`Pace`].
const PACE_SENT: usize = 3;
const PACE_ANSWERED: usize = 4;
const PACE_OTHER: usize = 5;

impl Harness {
    /// Sets the SYN, or other segment, that is sent with varying sources: an untagged frame
    /// with 20 bytes of TCP options.
    pub fn put_syn(&self, family: Family, frame: &[u8]) -> Result<()> {
        let (len, tcp, addresses) = match family {
            Family::V4 => (SYN4_LEN, TCP4_AT, 8),
            Family::V6 => (SYN6_LEN, TCP6_AT, 32),
        };
        ensure!(frame.len() == len, "a SYN of {} bytes", frame.len());
        // Neither source nor checksums are in the sums.
        let mut blank = frame.to_vec();
        let source = tcp - addresses..tcp - addresses / 2;
        for range in [source, tcp + TCP_SUM_AT..tcp + TCP_SUM_AT + 2] {
            blank.get_mut(range).context("a short SYN")?.fill(0);
        }
        if family == Family::V4 {
            blank
                .get_mut(SUM4_AT..SUM4_AT + 2)
                .context("a short SYN")?
                .fill(0);
        }
        let sum = |bytes: Option<&[u8]>| {
            let halves = bytes.unwrap_or_default().as_chunks::<2>().0.iter();
            halves.fold(Sum::default(), |sum, half| {
                sum.word(u16::from_ne_bytes(*half).into())
            })
        };
        let pseudo = Sum::pseudo([0; 2], [0; 2], u32::try_from(len - tcp)?, proto::TCP);
        let segment = sum(blank.get(tcp - addresses..)).plus(pseudo);
        let header = sum(blank.get(14..tcp));
        let word = |at: usize| {
            let bytes = blank.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let double = |at: usize| pair(word(at), word(at + 4));
        let ethernet = [double(0), pair(word(8), word(12))];
        let ip = [0, 1, 2, 3, 4].map(|i| match family {
            Family::V4 => word(14 + 4 * i).into(),
            Family::V6 => double(14 + 8 * i),
        });
        let header_words = [0, 1, 2, 3, 4].map(|i| double(tcp + 8 * i));
        let sums = [header.fold().into(), segment.fold().into()];
        let words = ethernet
            .into_iter()
            .chain(ip)
            .chain(header_words)
            .chain(sums);
        for (at, word) in self.syn.u64s().iter().zip(words) {
            at.store(word, Relaxed);
        }
        Ok(())
    }

    /// Starts the count of a flood over, and lets it send a SYN every so many nanoseconds,
    /// or keep so many unanswered ones on their way; 0 is no bound.
    pub fn pace(&self, interval_ns: u64, window: u64) {
        let pace = Pace {
            interval_ns,
            window,
            ..Pace::default()
        };
        let words = [pace.interval_ns, pace.window, 0, 0, 0, 0, 0];
        for (at, word) in self.pace.u64s().iter().zip(words) {
            at.store(word, Relaxed);
        }
    }

    /// Lets `floor_redirect` forward to an interface.
    pub fn forward_to(&self, ifindex: u32) {
        for word in self.to.u64s() {
            word.store(ifindex.into(), Relaxed);
        }
    }

    /// Attaches a program where no packet comes, until the link is closed: a test run of
    /// a program that is in use nowhere patches it in and out.
    pub fn in_use(&mut self, name: &str) -> Result<XdpLink> {
        let program = self.program(name)?;
        let link = program.attach("lo", XdpMode::Skb)?;
        Ok(program.take_link(link)?)
    }

    /// What the flood has done since then.
    pub fn flooded(&self) -> Flooded {
        let word = |i: usize| self.pace.u64s().get(i).map_or(0, |word| word.load(Relaxed));
        Flooded {
            sent: word(PACE_SENT),
            answered: word(PACE_ANSWERED),
            other: word(PACE_OTHER),
        }
    }
}

/// Two words as they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn region(ebpf: &Ebpf, name: &str, bytes: usize) -> Result<Region> {
    let map = ebpf
        .map(name)
        .with_context(|| format!("the harness has no map {name}"))?;
    let Map::Array(data) = map else {
        bail!("map {name} of the harness is no array");
    };
    Region::map_array(data.fd().as_fd(), bytes).with_context(|| format!("cannot map {name}"))
}

/// Runs a program over a frame, and returns the processor time that took: it
/// leaves out other processes, and has a finer resolution than the kernel's answer.
fn run(program: &Xdp, frame: &[u8], packets: u32) -> Result<Duration> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = packets;
    let start = processor_time()?;
    let result = program.test_run(options).context("the test run failed")?;
    let took = processor_time()?.saturating_sub(start);
    ensure!(
        result.return_value != ABORTED,
        "the harness found no program to run"
    );
    Ok(took)
}

fn processor_time() -> Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    ensure!(result == 0, "no clock of the thread's processor time");
    Ok(Duration::new(
        u64::try_from(time.tv_sec)?,
        u32::try_from(time.tv_nsec)?,
    ))
}

/// Puts a program into the harness. aya wants a descriptor of its own making
/// here, and the program under test is loaded elsewhere.
fn set_program(array: &Map, program: BorrowedFd<'_>) -> Result<()> {
    /// `BPF_MAP_UPDATE_ELEM` of `enum bpf_cmd`.
    const MAP_UPDATE_ELEM: libc::c_int = 2;
    /// The part of `union bpf_attr` for that command.
    #[repr(C)]
    struct Update {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let Map::ProgramArray(data) = array else {
        bail!("the harness's program array is none");
    };
    let data: &MapData = data;
    let (key, value) = (0u32, program.as_raw_fd());
    let attr = Update {
        map: u32::try_from(data.fd().as_fd().as_raw_fd())?,
        pad: 0,
        key: (&raw const key).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: the attribute has the layout and size that the command reads, and
    // its two pointers are to values that live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_UPDATE_ELEM,
            &raw const attr,
            size_of::<Update>(),
        )
    };
    ensure!(
        result == 0,
        "cannot put the program under test into the harness: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
