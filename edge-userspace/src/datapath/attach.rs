//! Attaching: BPF links on XDP hooks, pinned so that they outlive the daemon.
//!
//! A link is only ever one of the kernel's own (`BPF_LINK_CREATE`); the older
//! way over netlink, to which the library falls back, leaves nothing that
//! could be pinned and is undone.

use std::{os::fd::AsFd, path::Path};

use aya::programs::{
    Xdp, XdpMode,
    links::{FdLink, LinkError, LinkType, PinnedLink},
    loaded_links, loaded_programs,
    xdp::XdpLink,
};
use aya_obj::programs::XdpAttachType;
use edge_common::abi;
use tracing::warn;

use super::{
    error::{DatapathError, chain},
    netlink::{self, Hook, HookMode, Interface},
    pins,
};
use crate::status::AttachMode;

/// What is known of a pinned link of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// It is attached to the interface.
    Attached {
        /// Where the program runs.
        mode: AttachMode,
    },
    /// Its interface is gone (and perhaps made anew under the same name), or
    /// the pin is no link at all.
    Stale,
}

/// Looks whether the link pinned at `pin` is the one on the interface's hook.
pub(super) fn existing(pin: &Path, interface: &Interface) -> Existing {
    let Some(hook) = interface.hook else {
        return Existing::Stale;
    };
    let Ok(link) = PinnedLink::from_pin(pin).map(FdLink::from) else {
        return Existing::Stale;
    };
    let ours = link.info().is_ok_and(|info| {
        // Every interface has a load of its own, so that the program's id names both.
        info.link_type().is_ok_and(|t| t == LinkType::Xdp) && info.program_id() == hook.program
    });
    match (ours, hook.mode) {
        (true, HookMode::Native) => Existing::Attached {
            mode: AttachMode::Native,
        },
        (true, HookMode::Generic) => Existing::Attached {
            mode: AttachMode::Generic,
        },
        _ => Existing::Stale,
    }
}

/// Puts `program` in the place of the one that runs under a pinned link, with
/// no packet in between that neither sees.
pub(super) fn replace(program: &mut Xdp, pin: &Path, interface: &str) -> Result<(), DatapathError> {
    let failed = |why| DatapathError::Attach {
        interface: interface.into(),
        why,
    };
    let link = PinnedLink::from_pin(pin)
        .and_then(|l| XdpLink::try_from(FdLink::from(l)))
        .map_err(|e: LinkError| failed(chain(&e)))?;
    program
        .attach_to_link(link)
        .map_err(|e| failed(chain(&e)))?;
    Ok(())
}

/// The program with this id, found among all of the kernel's, which takes
/// CAP_SYS_ADMIN.
pub(super) fn by_id(id: u32) -> Option<Xdp> {
    let info = loaded_programs().find_map(|p| p.ok().filter(|p| p.id() == id))?;
    Xdp::from_program_info(info, abi::PROGRAM.into(), XdpAttachType::Interface).ok()
}

/// The program pinned at `pin` if it is the one with this id, to put it back
/// if need be.
pub(super) fn pinned(pin: &Path, id: u32) -> Option<Xdp> {
    let program = Xdp::from_pin(pin, XdpAttachType::Interface).ok()?;
    (program.info().ok()?.id() == id).then_some(program)
}

/// Id of the program that runs under a pinned link.
pub(super) fn program_of(pin: &Path) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    Some(link.info().ok()?.program_id())
}

/// Attaches `program` to an interface that has none, and pins the link at `pin`.
///
/// # Errors
/// As [`attach_unpinned`], and when the link cannot be pinned. The hook is then as
/// before.
pub(super) fn attach(
    program: &mut Xdp,
    interface: &Interface,
    allow_generic: bool,
    pin: &Path,
) -> Result<AttachMode, DatapathError> {
    let (link, mode) = attach_unpinned(program, interface, allow_generic)?;
    pins::unlink(pin)?;
    // Dropping the link when it cannot be pinned detaches it.
    link.pin(pin).map_err(|e| DatapathError::Attach {
        interface: interface.name.clone(),
        why: format!("cannot pin the link at {}: {}", pin.display(), chain(&e)),
    })?;
    Ok(mode)
}

/// Attaches `program` to an interface that has none, until the link is dropped.
///
/// # Errors
/// When the hook is taken, or when the driver refuses and generic mode is not allowed.
/// The hook is then as before.
pub(super) fn attach_unpinned(
    program: &mut Xdp,
    interface: &Interface,
    allow_generic: bool,
) -> Result<(FdLink, AttachMode), DatapathError> {
    if let Some(hook) = interface.hook {
        return Err(held(&interface.name, hook));
    }
    match link(program, interface.index, HookMode::Native) {
        Ok(link) => Ok((link, AttachMode::Native)),
        Err(error) => {
            // Somebody may have been quicker.
            if let Ok(Some(Interface { hook: Some(h), .. })) = netlink::interface(&interface.name) {
                return Err(held(&interface.name, h));
            }
            let why = refusal(program, interface, &error);
            if !allow_generic {
                return Err(DatapathError::NoNative {
                    interface: interface.name.clone(),
                    why,
                });
            }
            warn!(
                interface = interface.name,
                why, "NO NATIVE XDP: falling back to the slow generic mode"
            );
            let link = link(program, interface.index, HookMode::Generic).map_err(|why| {
                DatapathError::Attach {
                    interface: interface.name.clone(),
                    why: format!("generic mode: {why}"),
                }
            })?;
            Ok((link, AttachMode::Generic))
        }
    }
}

/// A new link on a hook; the error is for a person.
fn link(program: &mut Xdp, index: u32, mode: HookMode) -> Result<FdLink, String> {
    let aya_mode = match mode {
        HookMode::Generic => XdpMode::Skb,
        HookMode::Native | HookMode::Other => XdpMode::Driver,
    };
    let id = program
        .attach_to_if_index(index, aya_mode)
        .map_err(|e| chain(&e))?;
    let link = program.take_link(id).map_err(|e| chain(&e))?;
    FdLink::try_from(link).map_err(|_| {
        // Attached over netlink: such a program would stay for ever.
        let undone = program
            .fd()
            .map_err(|e| chain(&e))
            .and_then(|fd| netlink::clear(index, mode, fd.as_fd()).map_err(|e| e.to_string()));
        match undone {
            Ok(()) => "this kernel has no BPF links for XDP (Linux 5.9 and later do)".into(),
            Err(e) => format!("attached without a link, and cannot be taken off: {e}"),
        }
    })
}

/// Why the driver refuses: its own sentence if it has one.
fn refusal(program: &Xdp, interface: &Interface, error: &str) -> String {
    let said = program
        .fd()
        .ok()
        .and_then(|fd| netlink::native_refusal(interface.index, fd.as_fd()));
    match said {
        Some(said) => format!("{said} ({error}; MTU {})", interface.mtu),
        None => format!("{error} (MTU {})", interface.mtu),
    }
}

/// The error for a hook that somebody else holds.
pub(super) fn held(interface: &str, hook: Hook) -> DatapathError {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|p| p.id() == hook.program)
        .and_then(|p| p.name_as_str().map(str::to_owned))
        .filter(|n| !n.is_empty())
        .map_or_else(|| "a program".to_owned(), |n| format!("program '{n}'"));
    // Both lists are for CAP_SYS_ADMIN only; without it neither is known.
    let mut links = loaded_links().peekable();
    let unknown = links.peek().is_some_and(Result::is_err);
    let link = links
        .filter_map(Result::ok)
        .find(|l| l.program_id() == hook.program)
        .map(|l| l.id());
    let off = format!("detach it with `ip link set dev {interface} xdp off`");
    let remedy = match link {
        Some(link) => format!(
            "it is attached by BPF link {link}: stop the program that owns it, or \
             `bpftool link detach id {link}`"
        ),
        None if unknown => format!("stop the program that owns it, or {off}"),
        None => off,
    };
    DatapathError::HookHeld {
        interface: interface.into(),
        holder: format!("{name} (id {})", hook.program),
        remedy,
    }
}
