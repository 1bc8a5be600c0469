-- Release everything a consumer holds and forget the consumer, in one step, so that nothing is dropped with it.
--
-- ARGV    group, consumer
-- returns 1, or 0 where the group has vanished

if missing then return 0 end
while not give_back(ARGV[2], true) do end
ring()
return 1
