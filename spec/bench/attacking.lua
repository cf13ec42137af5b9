--- A server that others attack, by processes of spec/bench/attack.lua.
-- @module bench.attacking

local peers = require "bench.peers"
local process = require "bench.process"

local attacking = {}

local START_S = 20
local RATES = { messages = 10000, handshakes = 500 } -- a second: a million and fifty thousand in 100 s

local function attack(server, kind, rate, cpu)
  local attacker = process.start { "taskset", "--cpu-list", cpu, "lua5.4", peers.root .. "/spec/bench/attack.lua", kind, server.port,
    tostring(rate), peers.path "client_key" }
  attacker.name = "an attack by " .. kind
  process.wait_until(function() return attacker.code or attacker.output:find "attacking" end, START_S)
  if attacker.code or not attacker.output:find "attacking" then error(("no %s:\n%s"):format(attacker.name:sub(4), attacker.output), 0) end
  return attacker
end

--- Has others send a server what is no message and no handshake, so many a second.
-- @tparam table server
-- @string cpu where they run
-- @treturn function stops that; raises where an attack has ended by itself
function attacking.begin(server, cpu)
  local attackers = {}
  for kind, rate in pairs(RATES) do attackers[#attackers + 1] = attack(server, kind, rate, cpu) end
  return function()
    for _, attacker in ipairs(attackers) do process.stop(attacker) end
  end
end

return attacking
