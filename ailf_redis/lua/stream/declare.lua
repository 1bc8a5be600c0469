-- Store the number of partitions of a stream, unless one is stored. It takes one key, as a plain add does: so it works
-- while a cluster moves the slot.
--
-- KEYS[1] meta     hash of the stream (see retention.lua): "partitions" is the number, 0 for a partition of another one
-- ARGV    the number to store; 1 if the stream was used before, so that it must be stored on a full server too; 1 if a
--         stored 0 counts as no number
-- returns the stored number
-- writes  KEYS[1] without TTL: it is deleted with the stream

local stored = redis.call('HGET', KEYS[1], 'partitions')
local void = ARGV[3] == '1' and stored == '0'
if stored and not void and string.match(stored, '^%d%d?%d?%d?$') then return tonumber(stored) end
if ARGV[2] == '1' then redis.call('HDEL', KEYS[1], '') end -- a first write that changes nothing: see relief.lua
redis.call('HSET', KEYS[1], 'partitions', ARGV[1])
return tonumber(ARGV[1])
