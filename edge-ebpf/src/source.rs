//! The only raw packet pointers: [`PacketSource`] over an XDP buffer.

use aya_ebpf::{helpers::generated::bpf_xdp_get_buff_len, programs::XdpContext};
use core::arch::asm;
use edge_common::parse::PacketSource;

/// The linear part of an XDP frame.
#[derive(Clone, Copy)]
pub struct XdpSource<'a> {
    ctx: &'a XdpContext,
    data: usize,
    end: usize,
}

impl<'a> XdpSource<'a> {
    /// A view of the frame as it is now. Stale once the packet's head moved.
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self {
            ctx,
            data: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Bytes in the linear part.
    #[inline(always)]
    pub fn linear_len(&self) -> usize {
        self.end - self.data
    }

    /// Writes a value; `false` when it would not lie in the frame.
    #[inline(always)]
    pub fn write<T: Copy>(&self, offset: usize, value: T) -> bool {
        let at = hide((self.data + offset) as u64) as usize;
        if at + size_of::<T>() > self.end {
            return false;
        }
        // SAFETY: as for reading, below; nobody else has the frame.
        unsafe { *(at as *mut T) = value };
        true
    }

    #[inline(always)]
    pub fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        // The verifier tracks bounds by register. Without the barrier LLVM may
        // compare one copy of the sum and read through another.
        let at = hide((self.data + offset) as u64) as usize;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the bytes lie before data_end. Packet memory has no alignment
        // guarantee, but BPF loads need none on targets with efficient unaligned
        // access, and the verifier refuses the program on the others; a plain
        // load keeps the word whole where read_unaligned splits it into bytes.
        Some(unsafe { *(at as *const T) })
    }
}

/// The same value, unknown to the optimiser.
#[inline(always)]
pub fn hide(mut x: u64) -> u64 {
    // No instruction at all, for which the register must be named: a template that
    // does not mention its operands is taken only then, and one that mentions them in
    // a comment gets a line number, of which the kernel takes one an instruction.
    // SAFETY: does nothing.
    unsafe { asm!("", inout("r1") x, options(nomem, nostack, preserves_flags)) };
    x
}

/// `x >> by`, where of `by` only the lowest six bits count: the instruction masks
/// it (RFC 9669, 4.1), which LLVM does not know.
#[inline(always)]
pub fn shift_right(mut x: u64, by: u64) -> u64 {
    // SAFETY: changes a register.
    unsafe {
        asm!(
            "{0} >>= {1}",
            inout(reg) x,
            in(reg) by,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    x
}

impl PacketSource for XdpSource<'_> {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.read(offset)
    }

    #[inline(always)]
    fn doubles<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        self.read(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        self.read(offset)
    }

    #[inline(always)]
    fn byte(&self, offset: usize) -> Option<u8> {
        self.read(offset)
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        // The helper only where the linear part does not suffice: a
        // multi-buffer frame, or a lie.
        self.linear_len() >= len
            // SAFETY: a helper without side effects on the program's own context.
            || unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) } as usize >= len
    }
}
