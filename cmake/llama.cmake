# llama.cpp as imported targets llama::llama, llama::ggml, llama::ggml_base; sets KNA_HAVE_LLAMA.
#
# One script knows how llama.cpp is fetched and built (scripts/fetch_llama.sh). It prints where things are; when they are not there yet
# and are asked for (KNA_LLAMA=ON or LLAMA_SOURCE_DIR), the build runs it first.
set(KNA_HAVE_LLAMA OFF)
set(KNA_LLAMA_BIN "")
if(KNA_LLAMA STREQUAL "OFF" AND NOT LLAMA_SOURCE_DIR)
    message(STATUS "llama.cpp: left out (KNA_LLAMA=OFF); building the library and the operators of kna")
    return()
endif()

set(llama_fetch ${PROJECT_SOURCE_DIR}/scripts/fetch_llama.sh)
set(llama_args "")
if(LLAMA_SOURCE_DIR)
    if(NOT EXISTS ${LLAMA_SOURCE_DIR}/include/llama.h)
        message(FATAL_ERROR "LLAMA_SOURCE_DIR=${LLAMA_SOURCE_DIR}: no llama.cpp source tree (include/llama.h is missing)")
    endif()
    set(llama_args --source ${LLAMA_SOURCE_DIR})
endif()
execute_process(COMMAND ${llama_fetch} ${llama_args} --where OUTPUT_VARIABLE llama_where RESULT_VARIABLE llama_failed OUTPUT_STRIP_TRAILING_WHITESPACE)
if(llama_failed)
    message(FATAL_ERROR "${llama_fetch} --where failed")
endif()
# Three lines: source folder, build folder, "ready" or "absent".
string(REPLACE "\n" ";" llama_where "${llama_where}")
list(GET llama_where 0 llama_source)
list(GET llama_where 1 llama_build)
list(GET llama_where 2 llama_state)

if(llama_state STREQUAL "absent" AND KNA_LLAMA STREQUAL "AUTO" AND NOT LLAMA_SOURCE_DIR)
    message(STATUS "llama.cpp: not found; building the library and the operators of kna (scripts/fetch_llama.sh gets it, then configure again)")
    return()
endif()

set(KNA_HAVE_LLAMA ON)
set(KNA_LLAMA_BIN ${llama_build}/bin)
message(STATUS "llama.cpp: ${llama_source}, programs in ${KNA_LLAMA_BIN}")

set(llama_files "")
foreach(name llama ggml ggml-base)
    list(APPEND llama_files ${KNA_LLAMA_BIN}/lib${name}.so)
endforeach()
if(llama_state STREQUAL "absent")
    add_custom_command(OUTPUT ${llama_build}/knnattn.stamp BYPRODUCTS ${llama_files} COMMAND ${llama_fetch} ${llama_args} USES_TERMINAL
                       COMMENT "Building llama.cpp, once (about ten minutes)" VERBATIM)
    add_custom_target(llama_build DEPENDS ${llama_build}/knnattn.stamp)
endif()

# Interfaces of our own and not imported libraries: CMake demands that the folders of those exist, and these may only appear during the build.
add_library(llama_headers INTERFACE)
target_include_directories(llama_headers SYSTEM INTERFACE ${llama_source}/ggml/include ${llama_source}/ggml/src ${llama_source}/include)
foreach(name llama ggml ggml-base)
    string(REPLACE "-" "_" target ${name})
    add_library(llama_${target} INTERFACE)
    add_library(llama::${target} ALIAS llama_${target})
    target_link_libraries(llama_${target} INTERFACE ${KNA_LLAMA_BIN}/lib${name}.so llama_headers)
    if(TARGET llama_build)
        add_dependencies(llama_${target} llama_build)
    endif()
endforeach()
