"""The mechanisms of the protocol, by name. Mutants and the seeded bugs of the consistency run refer to these names.

`without("lease-check")` gives a change that takes the mechanism out; see `seams` for how it is found. A change that
moves or rewrites a mechanism moves its marker along, or changes the path of its function here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.races import seams
from tests.races.seams import Change, Function, Line, Mechanism, NoSeamError


def without(name: str, instead: Any = None, *, script: str | None = None) -> Change:
    """Return the change that takes a mechanism out.

    Args:
        name: of the mechanism.
        instead: what takes its place, if it is not what the registry says: a line, or a function.
        script: change only the Lua script of this name, where several share the line.

    Raises:
        NoSeamError: there is no such mechanism.
    """
    if name not in MECHANISMS:
        raise NoSeamError(f"{name}: no such mechanism; there are {', '.join(MECHANISMS)}")
    return Change(name, MECHANISMS[name], instead, script)


def original(name: str) -> Any:
    """Return the function that is a mechanism's seam, for a replacement that calls it."""
    return seams.original(MECHANISMS[name])


def label(value: Any) -> str:
    """Return the id in a test's name of a change, or of the race that is lost by it."""
    return str(getattr(value, "__name__", value))


def _lua(what: str, instead: str = "") -> Mechanism:
    return Mechanism(what, Line(instead))


def _line(what: str, instead: str | None = None) -> Mechanism:
    return Mechanism(what, Line(instead))


def _function(what: str, path: str, returns: Any = None, *, instead: Any = None) -> Mechanism:
    return Mechanism(what, Function(f"fastrdb.{path}", returns, instead))


@contextmanager
def _nothing_around(*arguments: Any, **options: Any) -> Iterator[None]:
    yield


_ON_ONE_SERVER = {
    "lease-check": _lua("a fill stores only while its lease is the one that was granted"),
    "barrier-set": _lua("a writer sets its barriers before it sweeps"),
    "barrier-check": _lua("a lease is refused while a barrier covers the key", "if false then"),
    "sweep-deletes-leases": _lua("a sweep deletes the leases of what it reaches"),
    "sweep-deletes-entries": _lua("a sweep deletes the entries that it reaches"),
    "release-checks-token": _lua("a lease is given back only by its holder"),
    "lease-has-moment": _lua(
        "two grants to one token differ, so that a load of the first is not stored under the second",
        "return sealed(token, kind) .. (moment or '')",
    ),
    "own-lease-granted-again": _lua(
        "an acquire that is sent twice is granted its own lease again", "if reader then return {'busy', reader} end"
    ),
    "dead-holders-noticed": _lua("a lease that its holder does not renew is taken over", "return true"),
    "looks-bounded": _lua("a script looks at a bounded number of barriers", "if false then"),
    "steps-bounded": _lua("a script compares a bounded number of letters", "return compare(text, glob)"),
    "lease-indexed": _lua("a lease is in the index, so that a sweep finds it"),
    "write-indexed": _lua("what a writer leases is in the index, so that another writer's sweep finds it"),
    "barriers-distinguished": _lua(
        "the end of one writer removes its own barriers only",
        "redis.call('ZREMRANGEBYSCORE', barriers, '-inf', '(+inf')",  # not the one that bars nothing: it is noticed
    ),
    "barriers-stood": _lua("a writer notices that a barrier of its own was down before its end"),
    "same-server": _lua(
        "the data of a server is used only in the life that it was adopted in",
        "if redis.call('EXISTS', trusted, index) > 0 then return true end",
    ),
    "replica-refused": _lua(
        "a master that was demoted since the greeting answers no acquire; Redis itself refuses to write there"
    ),
    "replication-id": _lua("a life is told by the replication id, which is a new one after a failover", "local id"),
    "index-is-whole": _lua("a sweep does not rely on an index that was lost"),
    "index-without-deaths": _lua("an index that has lost its deaths begins anew"),
    "lost-barriers-noticed": _lua("where barriers were lost, every key is barred for a while", "if false then"),
    "search-deletes-leases": _lua("a search deletes the leases that the index does not have"),
    "search-uninterrupted": _lua(
        "a search makes the index whole only if it was not lost meanwhile",
        "if is_done and redis.call('ZREM', index, search) >= 0 then",
    ),
    "search-spares-unknown": _lua(
        "a search for everything spares what may be another program's", "if all == '1' then return true end"
    ),
    "search-spares-lasting": _lua("a search spares keys that do not expire, which no entry does"),
    "release-sweeps": _lua("a release sweeps dead members of the index"),
    "release-forgets-missing": _lua("a release takes a key without an entry out of the index", "if false then"),
    "fill-sweeps": _lua("a fill sweeps dead members of the index"),
}

_ON_A_CLUSTER = {
    "shard-barrier-check": _lua(
        "a key that a barrier covers does not enter the index", "local is_barred, lost = false"
    ),
    "shard-lease-indexed": _lua("a lease is in the index of its shard"),
    "shard-write-indexed": _lua("what a writer leases is in the index of its shard"),
    "write-indexed-again": _line(
        "where an index may be evicted, what a writer leases enters it behind the lease, too", "if False:"
    ),
    "shard-is-whole": _lua("a sweep does not rely on a shard of the index that was lost"),
    "shard-lost-barriers-noticed": _lua("where barriers were lost, every key of the shard is barred", "if false then"),
    "evicted-shard": _lua("an empty shard of a server that evicts is not taken for a new one"),
    "fence-leaves-index": _lua(
        "what a sweep reaches stays in the index until it is deleted",
        "elseif reaches(head, filter, key) then reached[#reached + 1] = key redis.call('ZREM', index, key) end",
    ),
    "bury-unchanged-only": _lua("a member of the index is removed only if it was not entered again"),
    "search-finds-names": _lua("a search finds the keys that begin as entries do", "if false then"),
    "lease-has-history": _lua("a lease is of one history of its server", "return token .. '\\n\\n' .. kind"),
    "lease-enlisted": _lua("a lease is in the list of its slot, by which a healer finds it"),
    "first-get-judged": _line("a first GET is not answered by data that its greeting does not trust", "if False:"),
    "look-for-leases": _line("a healer that looks at all keys deletes the leases, too"),
    "look-by-current-map": _line("a healer asks for the map of the slots before it looks at each master"),
    "look-where-evicted": _line(
        "a healer looks at all keys where the lists of the slots may have been evicted",
        "await self._delete_all(client, run, scanning=False)",
    ),
    "one-master-evicts": _line("one master that evicts is enough for the whole cluster", "found = policy"),
    "evicted-is-not-whole": _line(
        "where an index may have been evicted, a new one is not taken for whole", "member = COMPLETE"
    ),
    "history-check": _function("data of an unknown history is not used", "protocol.trust:Trust.saw"),
    "cluster-acquire": _function(
        "a reader takes its lease before it enters the index", "protocol.cluster:ClusterBackend.acquire"
    ),
    "cluster-sweep": _function(
        "a writer deletes leases and entries, each lease before its entry",
        "protocol.cluster_writers:ClusterWriters._away",
    ),
    "cluster-end": _function(
        "a writer notices that a barrier of its own was down before its end",
        "protocol.cluster_writers:ClusterWriters.end",
    ),
}

_OF_TAGS = {
    "lost-deaths-found": _lua("a fill enters again what has tags, and a death in no list"),
    "fill-checks-tags": _lua("a fill looks at what writers have reached since its grant"),
    "shard-checks-tags": _lua("a fill looks at what writers have reached since its grant", "local why"),
    "tag-stamps": _lua("a fill is refused if a writer on one of its tags has ended since its grant"),
    "stamp-set": _lua("a writer that ends leaves a stamp on what it reached"),
    "name-looks-bounded": _lua("a fill looks at a bounded number of barriers", "if false then return nil end"),
    "columns-bounded": _lua("a writer looks at a bounded number of columns", "if false then"),
    "stamps-forgotten-in-portions": _lua(
        "a writer forgets a bounded number of stamps",
        "local over = redis.call('ZRANGEBYSCORE', keys.ended, STAMPS_FROM, ms(now - 2000 * keep))",
    ),
    "tag-barriers": _lua("a fill is refused while a writer on one of its tags stands"),
    "lapsed-barriers": _lua(
        "a fill looks at barriers that have lapsed since its grant",
        "local found = redis.call('ZRANGEBYSCORE', barriers, '(' .. ms(now_ms()), '+inf')",
    ),
    "lapsed-barriers-kept": _lua(
        "barriers that have lapsed are kept for as long as a load may take",
        "redis.call('ZREMRANGEBYSCORE', barriers, 0, ms(now))",
    ),
    "clock-goes-on": _lua("the clock of stamps goes on when that of the machine is set back"),
    "lost-stamps": _lua("a fill is refused if stamps may have been lost since its grant"),
    "tag-indexed": _lua("an entry is found by its tags"),
    "put-uses-column": _lua("a put puts the columns of its tags into use"),
    "shard-put-uses-column": _lua("a put puts the columns of its tags into use"),
    "tags-forgotten": _lua("tags go with their entry"),
    "columns-in-use-named": _lua("a writer reaches all values of a column that it does not name"),
    "column-counts-later": _lua(
        "a new column counts only when the writers that began before have ended",
        "redis.call('ZADD', keys.ended, ms(clock), column)",
    ),
    "new-column-looks-at-table": _lua("the first entries of a column look at the whole table"),
    "stamped-before-swept": _lua("what is invalidated by hand is stamped", "following(1)"),
    "shard-stamped-before-swept": _lua("what is invalidated by hand is stamped", "following(1)"),
    "tags-are-whole": _lua("a sweep does not rely on tags that were lost", "if false then"),
    "shard-tags-are-whole": _lua("a sweep does not rely on tags that were lost", "if false then"),
    "put-is-tagged": _lua("what a writer puts is found by its tags before it is stored"),
    "shard-put-is-tagged": _lua("what a writer puts is found by its tags before it is stored"),
}

_OF_WRITERS = {
    "note-has-all-seen": _line(
        "a note is trusted only if it has the newest mark and the ids that the process has seen", "if False:"
    ),
    "healed-life": _line(
        "a server that came back since the deletion began is not taken for healed",
        "await delete_all(); await self.settle(send); seen = self._newest | self._met",
    ),
    "newest-mark-remembered": _line("a process remembers the newest mark that it has seen", "self._newest = set()"),
    "former-master-left": _line("a new master is healed when all processes have left the former one"),
    "unhealed-master-refused": _line("no commit succeeds on a new master before that", "if False:"),
    "barriers-replaced": _line("the barriers of a repair replace those of the COMMIT that was abandoned"),
    "second-sweep": _line("a writer whose barriers did not stand sweeps once more", "if False:"),
    "greeting-judged": _line("a new connection is asked whose data it gives"),
    "greeting-of-new-connections": _line("a client that sends by itself is greeted behind each read", "if False:"),
    "healing": _function(
        "other data is deleted before it is used",
        "protocol.trust:Trust.heal",
        instead=lambda trust, *_: trust._health.clear(),
    ),
    "leases-before-entries": _line(
        "a search deletes all leases before it looks at entries", "for part, most in reversed(_SEARCH_COUNTS.items()):"
    ),
    "begin-before-commit": _function(
        "a writer begins before its COMMIT is sent", "transactions.listeners:_begin_intents"
    ),
    "call-covers-commits": _function(
        "a commit inside an invalidating call carries its prefixes",
        "transactions.scope:targets_around",
        instead=list,
    ),
    "older-transaction-covered": _function(
        "so does one that was begun before the call", "transactions.state:Targets.meet"
    ),
    "all-sessions-of-a-transaction": _function(
        "a transaction is that of every session that joined it",
        "transactions.state:Transaction.sessions",
        instead=lambda transaction: [user() for user in transaction.users][-1:],
    ),
    "result-covered": _function(
        "a commit inside an invalidating call covers what its result will name", "transactions.state:Transaction.widen"
    ),
    "only-writes-carry": _function(
        "only a commit of what was written carries a call's prefixes", "transactions.state:Targets.covered", True
    ),
    "savepoints-counted": _function(
        "the release of a savepoint that commits is noticed", "transactions.state:Transaction.savepoints", 0
    ),
    "undone-puts-dropped": _function(
        "what was put before a part of the transaction was undone is not stored", "transactions.listeners:_drop_values"
    ),
    "autocommit-noticed": _function(
        "a statement that commits by itself is taken for a COMMIT", "transactions.rules:autocommits", False
    ),
    "cancelled-is-undone": _function("what is cancelled before its COMMIT is rolled back", "transactions.finish:undo"),
    "changes-handed-over": _function(
        "a watcher stores its position when Redis has the changes", "watch.watcher:Watcher._invalidate"
    ),
    "outbox-by-snapshot": _function(
        "what was open at the last poll is read when it is committed", "watch.postgres:PostgresSource.poll"
    ),
    "heartbeat-checked": _function(
        "entries are read only while the heartbeat of the watcher is young", "protocol.watched:WatchedBound.check"
    ),
    "repairs": _function("what Redis missed is made up for", "protocol.repairs:Repairs.add"),
    "commit-watched": _function("the return of COMMIT is noticed", "transactions.listeners:_watch"),
    "outcome-known": _function(
        "the outcome of a session's transaction is known where the database told it",
        "transactions.state:SessionState.outcome",
    ),
    "intents-of-two-transactions": _function(
        "what two transactions have to invalidate ends with the later one",
        "transactions.state:Transaction.take_intents",
        (),
    ),
    "statements-classified": _function("a text that commits is taken for a COMMIT", "transactions.sql:effect", 0),
    "loose-transactions": _function(
        "after a COMMIT by hand each statement may commit by itself", "transactions.state:Transaction.loose", False
    ),
    "level-noticed": _function("a change of the isolation level by text is noticed", "transactions.rules:level_is_set"),
    "streams-noticed": _function(
        "a result that is still being read holds its snapshot", "transactions.rules:streams", False
    ),
    "shared-connection-noticed": _function(
        "sessions on the one connection of a pool share their transaction", "transactions.state:_shared"
    ),
    "followed-unput": _line(
        "FastRDB stores nothing itself where its entries follow writes: another writer finds entries by their tags",
        "if redis is None or not self._writes_through:",
    ),
    "crud-lists-before-flush": _function(
        "lists are invalidated before a statement that commits by itself",
        "crud.writes:RowWrite._invalidate_before_flush",
    ),
    "blockers-respected": _function(
        "a process reads past the cache while repairs are pending, or the data is another server's",
        "protocol.store:Store.bypass_reason",
    ),
    "unknown-outcome": _function(
        "after a COMMIT whose outcome is unknown the barriers stay", "protocol.intent:Intent.abandon"
    ),
}

_OF_LOADS = {
    "unnamed-schemas-unstored": _function(
        "what is read under a schema map that is not in the key is not stored",
        "transactions.rules:unnamed_schemas",
        False,
    ),
    "nested-schemas-unstored": _function(
        "nor what holds a hit that was read under one", "transactions.scope:RunningLoad.read_under"
    ),
    "objects-bounded": _line("a load in a session with very many objects copies none of them", "if False:"),
    "late-followers": _line("a caller that asked after a load began to read gets only what was stored", "late = False"),
    "last-connection-noticed": _function(
        "a caller that holds the last connection of a pool does not wait for a load that may need one",
        "transactions.rules:holds_last_connection",
        False,
    ),
    "unstorable-alone": _line("callers of results that have no entry do not wait for each other", "elif False:"),
    "verified-twice": _line("an entry that a write has deleted since its first read is not compared", "if False:"),
    "join-by-token": _function(
        "a caller joins only the load whose lease it has found", "loading.load:Loading._acquire"
    ),
    "rule-1-own-writes": _function(
        "a session that has written neither reads the cache nor fills it", "transactions.rules:wrote", False
    ),
    "rule-2-old-snapshot": _function(
        "what a session's older snapshot shows is not stored", "transactions.rules:why_not_stored"
    ),
    "rule-2-statements": _function(
        "so it is for the sessions that a load uses and does not name",
        "transactions.scope:RunningLoad.before_statement",
    ),
    "rule-2-levels": _function("the isolation level decides whether a snapshot is old", "transactions.rules:older"),
    "rule-2-checked-before": _function(
        "the snapshot is checked before the load, too", "transactions.scope:RunningLoad._check"
    ),
    "rule-1-statements": _function(
        "what a load's other sessions wrote and did not commit is not stored",
        "transactions.scope:RunningLoad._unpublished",
    ),
    "undone-remembered": _function(
        "a load that wrote and rolled back is not stored", "transactions.state:undone_since", False
    ),
    "called-functions-asked": _function(
        "functions of the database are asked before a rollback whether they wrote",
        "transactions.scope:rollback_begins",
    ),
    "keys-made-again": _function(
        "a load with other arguments, or of another tenant, than its key names is not stored",
        "loading.entry:CallContext.other_keys",
    ),
    "loads-skip-near": _function("a load asks Redis, and no near cache", "transactions.scope:is_loading", False),
    "session-claimed": _function("two tasks do not use one session at once", "transactions.scope:RunningCall._claim"),
    "changed-sessions-joined": _function(
        "a call that invalidates joins the sessions that have changes when it ends", "transactions.scope:used_here", ()
    ),
    "rule-3-identity-lookup": _function(
        "Session.get and many-to-one loads of a load do not look into the identity map",
        "transactions.scope:hides_identity_map",
        False,
    ),
    "rule-3-fresh-reads": _function(
        "the statements of a load are not answered by the identity map", "transactions.scope:fresh_reads", None
    ),
}

_OF_FOLLOWING = {
    # Without a look, a write reaches any value of the columns that its statement does not show: more, never less.
    # So the mutants put other values in place of the old ones.
    "look-before-write": _function(
        "the rows of a statement are looked at, under its lock, before it changes them", "transactions.follow:_look"
    ),
    "nested-hits-tagged": _function(
        "what a load finds in the cache gives the load its tags",
        "loading.entry:Entries._read_followed",
    ),
}

_OF_THE_NEAR_CACHE = {
    "near-token-check": _line("a value is kept only under the token that its reader put down", "if False:"),
    "near-change-takes-token": _line("a change takes the token of a value that is on its way"),
    "near-push": _function("a push drops what has changed", "near.cache:NearCache.pushed"),
    "near-flush": _line("a push that names no keys drops everything"),
    "near-signs-of-life": _line("an entry is answered only while its channel is alive", "if now < kept.until:"),
    "near-dropped-on-loss": _line("a lost channel drops everything"),
    "near-entry-ttl": _line("an entry is kept for no longer than Redis would", "ttl = self._ttl"),
    "near-key-tracked": _line("only keys of which a channel tells are kept", "for channel in ()"),
    "near-shut": _function(
        "an invalidation of this process drops what it reaches, and keeps it out until it is done",
        "near.cache:NearCache.shut",
        instead=_nothing_around,
    ),
    "near-owner": _function(
        "an object is returned to the function that made it only", "loading.entry:Entries.own_value"
    ),
    "immutable-shared-only": _function("only immutable objects are shared", "values.types:is_immutable", True),
    "near-channel-of-each-master": _function("each master of a cluster has a channel", "near.tracking:Tracking._add"),
    "near-role-checked": _function("a channel to a replica does not count", "near.tracking:_check_role"),
    "near-heartbeat": _function("a channel is asked for a sign of life", "near.tracking:ServerTracking._beat"),
}

_OF_THE_TRANSPORT = {
    "batch-sent-once": _line("a batch leaves the queue when it is sent", "self._in_flight = self._waiting[0]"),
    "get-joins-batch": _line("a second GET of a key joins the first", "if False:"),
    "cancelled-commands-sent": _line(
        "what its caller does not wait for is sent all the same",
        "return [command for commands, future in self._sends if not future.done() for command in commands]",
    ),
    "cancelled-get-skipped": _line("the reply for a cancelled caller is dropped", "else:"),
    "crowd-noticed": _line("a batch that is full makes a crowd of its callers"),
    "progress-is-replies": _line("a server is not silent as long as replies come", "self._alive_at = self.began"),
    "exchanges-distinguished": _line("each exchange has the timeout for itself", "if False:"),
    "blocked-loop-excused": _line("time that the event loop was blocked is not the server's"),
    "excuses-bounded": _line("silence is noticed though the event loop is blocked", "if late > HELD_UP_S:"),
    "last-look": _line("what came in the turn in which the time is over is read", "if over:"),
    "queue-counts": _line("a caller's time in the queue counts", "if False:"),
    "crowd-goes-together": _line("the callers of a crowd queue for one batch", "if self._busy:"),
    "crowd-remembered": _line("several callers at once make a crowd of the next ones"),
    "crowd-waits-its-turn": _line("the callers of a crowd wait for each other without limit", "if False:"),
    "crowd-in-flight": _line("a crowd lasts until its last batch has been answered", "return False"),
    "unread-skipped": _line(
        "replies that no caller waits for any more are skipped",
        "while due[0][2].done():\n    due.popleft()\ncount, replies, future = due[0]",
    ),
    "connection-in-use-stays": _line("a connection is not closed while it is used", "if left > 0:"),
    "greeting-grows-old": _line("a connection is greeted again now and then", "if self._greeting_due:"),
    "sentinel-asked": _line("a server that Sentinel names no more is left", "if False:"),
    "greeting-repeated": _line(
        "a greeting that was cancelled is said again",
        "self._greeting_due = 1e9\nself._exchange = wire.send((question, *commands))",
    ),
    "greeting-applied": _line("a connection to the wrong server is left", "again = None"),
    "reconnection-noted": _line("a connection that was closed is opened and greeted here", "if wire is None:"),
    "budget-goes-on": _line("the waits of one call share one timeout", "self.until = now + 8"),
    "budget-counts-queue": _line("a call's time in the queue counts", "if False:"),
    "budget-counts-read": _line("a call's first read counts", "left = 0.0"),
    "budget-is-used-up": _line("a wait uses up what the call may wait"),
    "budget-renewed": _line("much work has the timeout for each of its parts"),
    "budget-spares-waiting": _line("to wait for another's load does not count"),
    "redirection-keeps-due": _line("a read that is redirected is due when it was before"),
    "redirection-in-deadline": _line("a redirection has what its read has left", "left = 8.0"),
}

_OF_WATCHING = {
    "outbox-mark": _line("an outbox that was emptied has lost its mark", "if False:"),
    "outbox-lead": _function("one watcher leads", "watch.lead:Lead.take", True),
}

MECHANISMS: dict[str, Mechanism] = {
    **_ON_ONE_SERVER,
    **_ON_A_CLUSTER,
    **_OF_TAGS,
    **_OF_WRITERS,
    **_OF_LOADS,
    **_OF_FOLLOWING,
    **_OF_THE_NEAR_CACHE,
    **_OF_THE_TRANSPORT,
    **_OF_WATCHING,
}
