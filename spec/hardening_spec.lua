--- The module is built with what compiler and linker have against exploits, as Debian's hardening-check sees it.

local support = require "spec.support"

local CORE = support.root .. "/build/korv/core.so"

local function output(...)
  local done = support.run { ... }
  assert(done.code == 0, done:describe "failed")
  return done.stdout
end

describe("korv.core", function()
  teardown(support.finish)

  -- Control flow protection is looked at below: the mark that hardening-check looks for is set only where the whole C library has it, and
  -- Debian 12's has not.
  it("is hardened as far as hardening-check demands", function()
    local report = output("hardening-check", "--nocfprotection", CORE)
    for _, what in ipairs { "Stack protected", "Fortify Source functions", "Read%-only relocations", "Immediate binding" } do
      assert.matches(" " .. what .. ": yes", report)
    end
  end)

  it("has neither a stack that can be run, nor code that is written to, nor a path of its own to libraries", function()
    local segments = output("readelf", "--segments", "--dynamic", "--wide", CORE)
    assert.matches("GNU_STACK[^\n]* RW +0x", segments)
    for _, never in ipairs { "TEXTREL", "RPATH", "RUNPATH", "RWE" } do assert.is_nil(segments:find(never), never) end
  end)

  it("probes its stack where a function takes more than a page of it, and marks where control may go", function()
    if not output("uname", "-m"):find "x86_64" then return end
    local code = output("objdump", "--disassemble", "--no-show-raw-insn", CORE)
    assert.matches("orq +%$0x0,%(%%rsp%)", code)
    assert.matches("<luaopen_korv_core[^>]*>:\n[^\n]*endbr64", code)
  end)
end)
