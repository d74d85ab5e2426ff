-- A rollback journal, a write-ahead log in shared memory, locks, truncation: what SQLite asks of files.
pragma journal_mode=delete;
create table t(a integer primary key, b text, c real);
begin;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)
    insert into t select i, printf('row %05d', i * 7919 % 1001), i * 0.5 from n;
commit;
create index by_b on t(b);
select count(*), sum(a), avg(c), min(b), max(b) from t;
update t set c = c * 2 where a % 3 = 0;
delete from t where a % 7 = 0;
select count(*), sum(c) from t;
pragma integrity_check;
vacuum;
pragma page_count;
pragma journal_mode=wal;
insert into t values(9999, 'last', 1);
select * from t where a = 9999;
pragma wal_checkpoint;
begin;
delete from t;
rollback;
select 'rows left', count(*) from t;
