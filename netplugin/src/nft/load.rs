//! Brings transactions to the kernel, and notices when the table is no longer there.

use super::abi;
use super::encode::{Batch, comment_data, get_element};
use super::ruleset::{self, Pod, Settings};
use crate::error::Error;
use crate::netlink::netfilter::{Header, Writer};
use crate::netlink::socket::{Netfilter, Refusal, attributes_of};

/// The daemon's table in the kernel.
pub(crate) struct Nft {
    netfilter: Netfilter,
    table: String,
}

impl Nft {
    /// Opens a socket in the network namespace of the calling thread; touches nothing yet.
    pub(crate) fn open(table: &str) -> Nft {
        Nft { netfilter: Netfilter::open(), table: table.to_owned() }
    }

    /// Puts the table there as it should be, in one transaction.
    pub(crate) fn rebuild(
        &mut self,
        settings: &Settings<'_>,
        pods: &[Pod<'_>],
    ) -> Result<(), Error> {
        self.commit(|batch| ruleset::rebuild(batch, settings, pods))
    }

    /// Adds everything a pod has, in one transaction. Fails with ENOENT when the table is gone.
    pub(crate) fn add(&mut self, pod: &Pod<'_>) -> Result<(), Error> {
        let elements = ruleset::elements(pod);
        self.commit(|batch| {
            for (set, element) in elements {
                batch.add_elements(set, &[element]);
            }
        })
    }

    /// Removes everything a pod has. What is not there any more is success.
    pub(crate) fn remove(&mut self, pod: &Pod<'_>) -> Result<(), Error> {
        let elements = ruleset::elements(pod);
        let all = self.commit(|batch| {
            for (set, element) in &elements {
                batch.delete_elements(set, std::slice::from_ref(element));
            }
        });
        match all {
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            result => return gone_with_nf_tables(result),
        }
        // Something is missing and kept the rest in place: one by one, then.
        for (set, element) in &elements {
            match self.commit(|batch| batch.delete_elements(set, std::slice::from_ref(element))) {
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Removes the table. No table is success.
    pub(crate) fn remove_table(&mut self) -> Result<(), Error> {
        gone_with_nf_tables(self.commit(|batch| {
            batch.add_table("");
            batch.delete_table();
        }))
    }

    /// Whether this kernel has what tables are made of.
    pub(crate) fn is_possible(&mut self) -> Result<(), Error> {
        self.comment().map(drop)
    }

    /// Whether the table stands at all.
    pub(crate) fn exists(&mut self) -> Result<bool, Error> {
        gone_with_nf_tables(self.comment().map(|comment| comment.is_some()))
    }

    /// Whether the table stands and was made for these settings.
    pub(crate) fn is_current(&mut self, settings: &Settings<'_>) -> Result<bool, Error> {
        Ok(self.comment()? == Some(comment_data(&settings.comment())))
    }

    /// The set that lacks an element this pod should have in it.
    pub(crate) fn missing(&mut self, pod: &Pod<'_>) -> Result<Option<&'static str>, Error> {
        for (set, element) in ruleset::elements(pod) {
            let table = self.table.clone();
            let found = self.ask(abi::GETSETELEM, |m| get_element(m, &table, set, &element))?;
            if found.is_none() {
                return Ok(Some(set));
            }
        }
        Ok(None)
    }

    /// The user data of the table; `None` when there is no table.
    fn comment(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let table = self.table.clone();
        let answer = self.ask(abi::GETTABLE, |m| m.text(abi::TABLE_NAME, &table))?;
        Ok(answer.map(|attributes| {
            attributes_of(&attributes)
                .find(|(kind, _)| *kind == abi::TABLE_USERDATA)
                .map(|(_, data)| data.to_vec())
                .unwrap_or_default()
        }))
    }

    /// Asks for one object: its attributes, or `None` when there is none.
    fn ask(
        &mut self,
        kind: u16,
        question: impl FnOnce(&mut Writer<'_>),
    ) -> Result<Option<Vec<u8>>, Error> {
        const NLM_F_REQUEST_ACK: u16 = 5;
        /// The header of a netfilter message inside its netlink message.
        const HEADER: usize = 4;
        let channel = self.netfilter.channel()?;
        let sequence = channel.sequence(1);
        let header = Header {
            kind: (abi::SUBSYSTEM << 8) | kind,
            flags: NLM_F_REQUEST_ACK,
            sequence,
            family: abi::FAMILY_INET,
            resource: 0,
        };
        let mut datagram = Vec::new();
        header.write(&mut datagram, question);
        let mut answer = Vec::new();
        let refusal = channel.question(&datagram, sequence, |_, payload| {
            answer = payload.get(HEADER..).unwrap_or_default().to_vec();
        })?;
        match refusal {
            None => Ok(Some(answer)),
            Some(refusal) if refusal.errno == libc::ENOENT => Ok(None),
            Some(refusal) => Err(question_failed(refusal, "look into table", &self.table)),
        }
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Asks for all objects of a kind; hands (family, attributes) of each to `each`.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        question: impl FnOnce(&mut Writer<'_>),
        mut each: impl FnMut(u8, &[u8]),
    ) -> Result<(), Error> {
        const NLM_F_REQUEST_DUMP: u16 = 0x301;
        let channel = self.netfilter.channel()?;
        let sequence = channel.sequence(1);
        let header = Header {
            kind: (abi::SUBSYSTEM << 8) | kind,
            flags: NLM_F_REQUEST_DUMP,
            sequence,
            family,
            resource: 0,
        };
        let mut datagram = Vec::new();
        header.write(&mut datagram, question);
        let refusal = channel.question(&datagram, sequence, |_, payload| {
            if let [family, _, _, _, attributes @ ..] = payload {
                each(*family, attributes);
            }
        })?;
        refusal.map_or(Ok(()), |refusal| Err(question_failed(refusal, "list", "nftables chains")))
    }

    fn commit(&mut self, write: impl FnOnce(&mut Batch)) -> Result<(), Error> {
        let table = self.table.clone();
        self.commit_to(&table, write)
    }

    /// Sends a transaction on a table of anyone.
    pub(super) fn commit_to(
        &mut self,
        table: &str,
        write: impl FnOnce(&mut Batch),
    ) -> Result<(), Error> {
        // One number before the messages is for the frame of the transaction.
        let channel = self.netfilter.channel()?;
        let first = channel.sequence(1).wrapping_add(1);
        let mut batch = Batch::new(table, first);
        write(&mut batch);
        let (datagram, steps) = batch.finish();
        channel.sequence(steps.len());
        if steps.is_empty() {
            return Ok(());
        }
        let refusals = channel.transact(&datagram, first, steps.len())?;
        match refusals.into_iter().min_by_key(|refusal| refusal.index) {
            None => Ok(()),
            Some(refusal) => {
                let (stage, object) = steps
                    .get(refusal.index)
                    .cloned()
                    .unwrap_or_else(|| ("commit to table", table.to_owned()));
                Err(transaction_failed(refusal, stage, object))
            }
        }
    }
}

/// A kernel with netfilter's netlink and without nf_tables finds such a question invalid.
fn question_failed(refusal: Refusal, stage: &'static str, object: &str) -> Error {
    refusal.into_error(stage, object).without_nf_tables(libc::EINVAL)
}

/// The same kernel supports no transaction about tables, whatever is in it.
fn transaction_failed(refusal: Refusal, stage: &'static str, object: String) -> Error {
    let whole = refusal.is_of_frame();
    let error = refusal.into_error(stage, object);
    if whole { error.without_nf_tables(libc::EOPNOTSUPP) } else { error }
}

/// Where there can be no table there is none.
pub(super) fn gone_with_nf_tables<T: Default>(result: Result<T, Error>) -> Result<T, Error> {
    match result {
        Err(Error::NoNfTables { .. }) => Ok(T::default()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::socket::OF_FRAME;

    #[test]
    fn a_kernel_without_nf_tables_is_told_as_one() {
        let transaction = |index, errno| {
            transaction_failed(Refusal::of(index, errno), "add table", "t".to_owned())
        };
        let question = |errno| question_failed(Refusal::of(0, errno), "look into table", "t");
        for error in [transaction(OF_FRAME, libc::EOPNOTSUPP), question(libc::EINVAL)] {
            assert!(matches!(error, Error::NoNfTables { .. }), "{error}");
            assert!(error.to_string().contains("modprobe nf_tables"), "{error}");
        }
        let others = [
            transaction(0, libc::EOPNOTSUPP),
            transaction(OF_FRAME, libc::EPERM),
            question(libc::EPERM),
        ];
        for error in others {
            assert!(matches!(error, Error::Kernel { .. }), "{error}");
        }
    }
}
