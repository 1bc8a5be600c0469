-- End a token's grant, and give up its place in line.
--
-- ARGV    token
-- returns 1 where it had an unexpired grant of every name, else 0

local token = ARGV[1]
local mine = 1
for _, lock in ipairs(all_locks()) do
  if not ends_of(lock, token) then mine = 0 end
  expire(lock)
  local freed = redis.call('ZREM', lock.holders, token)
  redis.call('HDEL', lock.fences, token)
  local first = head(lock)
  leave_line(lock, token)
  if freed == 1 or first == token then wake(lock) end
end
return mine
