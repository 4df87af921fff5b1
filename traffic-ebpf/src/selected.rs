//! Counting for cgroups that must not be hooked themselves: the hooks hang on a cgroup above, and select.
//!
//! They are programs of their own, so that the ordinary ones have not one instruction for it. What they see of
//! a selected cgroup is what a hook on itself would see: the kernel puts the full socket into the packet before
//! it runs them, and takes their list from that socket's cgroup.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC},
    helpers::generated::bpf_skb_ancestor_cgroup_id,
    macros::{cgroup_skb, map},
    maps::{Array, HashMap},
    programs::SkBuffContext,
};
use traffic_ebpf::{EGRESS, INGRESS, MOST_SELECTED, MOST_SELECTED_LEVELS};

use crate::program::{PASS, count};

/// The cgroup that the hook hangs on, by the id of each selected one. The program looks only whether it is
/// there.
#[map]
static SELECTED: HashMap<u64, u64> = HashMap::with_max_entries(MOST_SELECTED, BPF_F_NO_PREALLOC);

/// How deep in the tree the selected ones are, each level once; 0, the root's, ends the list.
#[map]
static SELECTED_LEVELS: Array<[u8; MOST_SELECTED_LEVELS]> = Array::with_max_entries(1, 0);

#[cgroup_skb(ingress)]
pub fn select_ingress(ctx: SkBuffContext) -> i32 {
    if is_selected(ctx.skb.skb) {
        count(&ctx, INGRESS);
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn select_egress(ctx: SkBuffContext) -> i32 {
    if is_selected(ctx.skb.skb) {
        count(&ctx, EGRESS);
    }
    PASS
}

/// Whether the packet's socket belongs to a selected cgroup, or to one below it.
#[inline(always)]
fn is_selected(skb: *mut __sk_buff) -> bool {
    // The lookup cannot fail: the map is an array, and has this element.
    let Some(levels) = SELECTED_LEVELS.get_ptr(0) else { return false };
    let levels: *const u8 = levels.cast();
    for index in 0..MOST_SELECTED_LEVELS {
        // SAFETY: a live value of so many bytes, which the agent may be writing: each is read once.
        let level = unsafe { levels.add(index).read_volatile() };
        if level == 0 {
            break;
        }
        // SAFETY: the context is the packet's. It is 0, which no cgroup has, where the socket's is not as deep.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb, i32::from(level)) };
        // SAFETY: the value is not read.
        if unsafe { SELECTED.get(&id) }.is_some() {
            return true;
        }
    }
    false
}
