//! Who has the least, among a fixed number of players whose values change one at a time.
//!
//! A tournament tree: a change costs one walk to the root, and nothing is left over from the values of before, as it would be in
//! a heap. Used for the [agenda](super::agenda) and for the CPUs' loads. The invariant: the winner has the least value, and of
//! equals the lowest number, so that a run is the same every time.

use alloc::vec;
use alloc::vec::Vec;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Tournament<T> {
    /// By player; padded to a power of two.
    values: Vec<T>,
    /// `winner[i]` is the player that wins among the leaves under node `i`; the root is 1.
    winner: Vec<u32>,
}

impl<T: Copy + Ord> Tournament<T> {
    /// Players 0 to `players - 1`, all of which have `value`. None may ever have more than `most`.
    pub(super) fn new(players: usize, value: T, most: T) -> Self {
        let leaves = players.next_power_of_two().max(2);
        let mut winner = vec![0; leaves];
        for node in (1..leaves).rev() {
            winner[node] = if node >= leaves / 2 { (2 * node - leaves) as u32 } else { winner[2 * node] };
        }
        let mut values = vec![value; players];
        values.resize(leaves, most);
        Self { values, winner }
    }

    /// The player's value is now this one.
    pub(super) fn set(&mut self, player: usize, value: T) {
        if core::mem::replace(&mut self.values[player], value) == value {
            return;
        }
        let leaves = self.values.len();
        let mut node = (player + leaves) / 2;
        let pair = player & !1;
        let mut best = self.better(pair as u32, pair as u32 + 1);
        loop {
            self.winner[node] = best;
            if node == 1 {
                return;
            }
            let sibling = self.winner[node ^ 1];
            best = if node & 1 == 0 { self.better(best, sibling) } else { self.better(sibling, best) };
            node /= 2;
        }
    }

    /// The one with less; `left`, the lower number, if they are equal.
    fn better(&self, left: u32, right: u32) -> u32 {
        if self.values[right as usize] < self.values[left as usize] { right } else { left }
    }

    /// The least value, and who has it.
    pub(super) fn least(&self) -> (T, usize) {
        let player = self.winner[1] as usize;
        (self.values[player], player)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_winner_has_the_least(
            players in 1_usize..70,
            initial in 0_u64..20,
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..20), 0..200),
        ) {
            let mut tree = Tournament::new(players, initial, 20);
            let mut model = vec![initial; players];
            prop_assert_eq!(tree.least(), (initial, 0));
            for (player, value) in steps {
                let player = player.index(players);
                tree.set(player, value);
                model[player] = value;
                let expected = model.iter().copied().enumerate().min_by_key(|&(i, v)| (v, i)).map(|(i, v)| (v, i));
                prop_assert_eq!(Some(tree.least()), expected);
            }
        }
    }
}
