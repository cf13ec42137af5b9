--- A server with options that the command line has not: `lua5.4 limited_server.lua OPTIONS SCRIPT…`, as spec/peers/listening.lua has it. It
-- serves until SIGTERM.
local listen = dofile(arg[0]:match "^(.*/)" .. "listening.lua")

local korv = require "korv"
local uv = require "luv"

local server = listen()
local signal = uv.new_signal()
signal:start("sigterm", function() server:stop() end)
signal:unref()
korv.run()
os.exit(0, true)
