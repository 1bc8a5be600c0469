-- The server's time, read once per script; it stands before the text of every transition that tells the time.
--
-- returns nothing by itself
-- writes  nothing

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- An integer as text: Lua's own way rounds what is beyond 14 digits.
local function number(n) return string.format('%.0f', n) end
