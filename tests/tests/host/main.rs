//! Edge on a host with real links, clients and servers, as a user sees it.

mod rig;
